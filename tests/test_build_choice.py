"""What --kind auto builds, and what it says about it."""

from pathlib import Path

import pytest

import index.build_choice
from index.build_choice import choose_kind
from index.errors import BuildError
from index.manifest import IndexKind
from tests.conftest import MakeIndex, random_gaussians


@pytest.mark.parametrize(
    ("documents", "k", "target", "kind"),
    [
        (4_000, 128, 0.99, IndexKind.FLAT),
        (100, 1024, 0.99, IndexKind.FLAT),
        (117_659, 128, 0.99, IndexKind.FASTSCAN),
        (117_659, 2, 0.99, IndexKind.FLAT),
        (5_000_000, 128, 0.95, IndexKind.IVF_FASTSCAN),
        (5_000_000, 128, 0.99, IndexKind.FASTSCAN),
    ],
)
def test_the_kind_follows_size_and_recall(documents: int, k: int, target: float, kind: IndexKind) -> None:
    chosen, reason = choose_kind(documents, k, target)
    assert chosen is kind
    assert reason.startswith("auto: ")
    assert f"{documents:,}" in reason


@pytest.mark.parametrize(
    ("flat", "scanned", "kind"),
    [(1 << 22, 0, IndexKind.FLAT), (0, 10_000, IndexKind.FASTSCAN), (0, 0, IndexKind.IVF_FASTSCAN)],
)
def test_the_index_says_why(
    make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch, flat: int, scanned: int, kind: IndexKind
) -> None:
    monkeypatch.setattr(index.build_choice, "FLAT_NUMBERS", flat)
    monkeypatch.setattr(index.build_choice, "SCANNED_DOCUMENTS", scanned)
    manifest = make_index(random_gaussians(2000, 8, seed=4), kind="auto", target_recall=0.95).manifest()
    assert manifest.kind is kind
    assert manifest.reason is not None
    assert manifest.reason.startswith("auto: ")


def test_what_no_kind_can_hold_is_flat_and_says_so(make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index.build_choice, "FLAT_NUMBERS", 0)
    manifest = make_index(random_gaussians(20, 4), kind="auto").manifest()
    assert manifest.kind is IndexKind.FLAT
    assert manifest.reason is not None
    assert manifest.reason.startswith("asked for auto, but ")


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("flat", {"code_bytes": 8}),
        ("flat", {"candidates": 8}),
        ("fastscan", {"lists": 8}),
        ("hnsw", {"nprobe": 8}),
        ("faiss", {"factory": "SQ8", "nprobe": 8}),
        ("auto", {"factory": "SQ8"}),
    ],
)
def test_an_option_of_another_kind_is_refused(
    make_index: MakeIndex, tmp_path: Path, kind: str, option: dict[str, object]
) -> None:
    name = list(option)[-1].replace("_", "-")
    with pytest.raises(BuildError, match=rf"--{name} is for kind .*, and this is {kind}: leave it out"):
        make_index(random_gaussians(100, 4), kind=kind, **option)
    assert not (tmp_path / "index" / "staging").exists()
