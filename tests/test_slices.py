"""Slices of a corpus: each read by itself, they are what the local build reads one after the other."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import index.sources
from index.distributed.slices import Counted, Mark, Slice, batches_of, count_rows, cut
from index.errors import SourceError
from index.rows import SourceBatch
from index.sources import Corpus, RejectedRows

BATCH_ROWS = 8
"""Of the readers here, so that a slice spans some of their batches, or lies in one."""


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index.sources, "DEFAULT_BATCH_ROWS", BATCH_ROWS)


def rows_of(count: int, seed: int, bad: float) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for row in range(count):
        variance = 0.0 if rng.random() < bad else 1.0
        one: dict[str, Any] = {"id": f"{seed}-{row}", "mean": [float(row)], "variance": [variance]}
        rows.append(one | ({"rare": row} if rng.random() < 0.05 else {}))
    return rows


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=13)
    return path


def documents(batches: Sequence[SourceBatch]) -> list[tuple[str, float, Any]]:
    return [
        (name, mean[0], rest)
        for batch in batches
        for name, mean, rest in zip(
            batch.ids.to_pylist(),
            batch.gaussians.means.tolist(),
            batch.payload.to_pylist() if batch.payload is not None else [None] * len(batch),
            strict=True,
        )
    ]


@pytest.mark.parametrize("segment_docs", [1, 3, 8, 20, 1000])
@pytest.mark.parametrize("bad", [0.0, 0.2, 0.9])
def test_slices_are_the_segments_of_a_local_build_and_leave_out_what_it_leaves_out(
    tmp_path: Path, segment_docs: int, bad: float
) -> None:
    counts, suffixes = (30, 1, 55, 17), ("jsonl", "parquet", "parquet", "jsonl")
    files = [
        write(tmp_path / f"{place}.{suffix}", rows_of(count, place, bad))
        for place, (count, suffix) in enumerate(zip(counts, suffixes, strict=True))
    ]
    local: list[list[SourceBatch]] = [[]]
    with RejectedRows(tmp_path / "local.jsonl") as rejected:
        for batch in Corpus(files, rejected=rejected).batches(cut_every=segment_docs):
            if sum(map(len, local[-1])) == segment_docs:
                local.append([])
            local[-1].append(batch)
    # With no bad rows, it is the same whether these would be skipped.
    for skips in (True, False) if not bad else (True,):
        corpus = Corpus(files)
        k = corpus.width()
        parts = cut([count_rows(corpus, file, k, skips=skips) for file in range(len(files))], segment_docs)
        assert len(parts) == len(local)
        for part, segment in zip(parts, local, strict=True):
            listed = tmp_path / f"of-{part.ordinal}.jsonl"
            with RejectedRows(listed) as rejected:
                assert documents(list(batches_of(Corpus(files, rejected=rejected), part, k))) == documents(segment)
        together = b"".join((tmp_path / f"of-{part.ordinal}.jsonl").read_bytes() for part in parts)
        assert together == (tmp_path / "local.jsonl").read_bytes()
        for part in parts:
            (tmp_path / f"of-{part.ordinal}.jsonl").unlink()


def test_a_bad_row_that_is_not_skipped_is_raised_by_its_slice_alone(tmp_path: Path) -> None:
    rows = rows_of(40, 1, 0.0)
    rows[21]["variance"] = [0.0]
    corpus = Corpus([write(tmp_path / "a.jsonl", rows)])
    parts = cut([count_rows(corpus, 0, 1, skips=False)], 10)
    for part in parts:
        if part.ordinal == 2:
            with pytest.raises(SourceError, match=r"a\.jsonl line 43, column 'variance'"):
                list(batches_of(corpus, part, 1))
        else:
            assert sum(map(len, batches_of(corpus, part, 1))) == 10


@pytest.mark.parametrize(
    ("counts", "slices"),
    [
        ([[]], [Slice(0, Mark(0, 0, 0), Mark(1, 0, 0))]),
        ([[Counted(0, 3, False)]], [Slice(0, Mark(0, 0, 0), Mark(1, 0, 0))]),
        (
            [[Counted(0, 7, False)]],
            [Slice(0, Mark(0, 0, 0), Mark(0, 3, 0)), Slice(1, Mark(0, 3, 0), Mark(0, 6, 0)),
             Slice(2, Mark(0, 6, 0), Mark(1, 0, 0))],
        ),
        # The next segment begins where there is a row again, in the middle of a reader's batch.
        (
            [[Counted(0, 2, True), Counted(9, 0, True)], [Counted(0, 1, True)],
             [Counted(0, 0, True), Counted(4, 2, True)]],
            [Slice(0, Mark(0, 0, 0), Mark(2, 4, 0)), Slice(1, Mark(2, 4, 0), Mark(3, 0, 0))],
        ),
        (
            [[Counted(0, 2, True)], [Counted(0, 4, True)]],
            [Slice(0, Mark(0, 0, 0), Mark(1, 0, 1)), Slice(1, Mark(1, 0, 1), Mark(2, 0, 0))],
        ),
    ],
)  # fmt: skip
def test_a_corpus_is_cut_after_every_three_rows(counts: list[list[Counted]], slices: list[Slice]) -> None:
    assert cut(counts, 3) == slices
