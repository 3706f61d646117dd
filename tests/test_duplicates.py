"""Ids that stand in a corpus twice: found by hashes that equal ids share, and told apart from mere collisions."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import index.duplicates
from index import BuildOptions, IndexDirectory, build_index
from index.duplicates import hash_strings
from index.errors import DuplicateIdError
from tests.conftest import random_gaussians, write_corpus

BASE = 0x9E3779B97F4A7C15


def polynomial(text: str, base: int) -> int:
    return sum((byte + 1) * pow(base, place, 1 << 64) for place, byte in enumerate(text.encode())) % (1 << 64)


@given(st.lists(st.text(max_size=40), max_size=20), st.integers(0, 2**63 - 1), st.data())
def test_hashes_are_those_of_each_string_alone(texts: list[str], half: int, data: st.DataObject) -> None:
    strings, base = pa.array(texts, pa.string()), 2 * half + 1
    expected = [polynomial(text, base) for text in texts]
    assert hash_strings(strings, base).tolist() == expected
    start = data.draw(st.integers(0, len(texts)))
    assert hash_strings(strings.slice(start), base).tolist() == expected[start:]


def test_a_million_ids_that_differ_little_have_hashes_of_their_own() -> None:
    hashes = hash_strings(pa.array([f"doc-{number}" for number in range(1_000_000)]), BASE)
    assert len(np.unique(hashes)) == 1_000_000


def all_alike(strings: pa.StringArray, _: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.zeros(len(strings), np.uint64)


def of_pairs(strings: pa.StringArray, _: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """A hash that two different ids share: those of documents 2n and 2n + 1."""
    return np.array([int(text.strip("dx")) // 2 for text in strings.to_pylist()], np.uint64)


@pytest.mark.parametrize("hashes", [all_alike, of_pairs])
def test_ids_that_only_share_a_hash_are_no_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashes: object
) -> None:
    monkeypatch.setattr(index.duplicates, "hash_strings", hashes)
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(30, 2))
    summary = build_index([corpus], IndexDirectory(tmp_path / "index"), BuildOptions(segment_docs=7))
    assert summary.manifest.documents == 30


@pytest.mark.parametrize("hashes", [None, all_alike, of_pairs])
def test_a_duplicate_is_found_behind_any_number_of_collisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashes: object
) -> None:
    if hashes is not None:
        monkeypatch.setattr(index.duplicates, "hash_strings", hashes)
    monkeypatch.setattr(index.duplicates, "LOOKED_UP", 2)
    names = [f"d{row}" for row in range(29)] + ["d28"]
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(30, 2), names)
    with pytest.raises(DuplicateIdError, match=r"'d28' at .*corpus\.parquet row 28 and .*corpus\.parquet row 29"):
        build_index([corpus], IndexDirectory(tmp_path / "index"), BuildOptions(segment_docs=7))
