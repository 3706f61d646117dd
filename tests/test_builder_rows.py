"""Corpora that cannot be indexed as they are: nothing of them stays in the way of the corrected build."""

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import index.build_work
from index import BuildOptions, Corpus, IndexDirectory, LocalSearcher, build_index
from index.document_writing import DocumentWriter
from index.errors import BuildError, DuplicateIdError, SourceError
from tests.conftest import random_gaussians, write_corpus
from tests.serving import PATIENCE

SKIP = BuildOptions(segment_docs=4, on_error="skip")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(name: object, **fields: Any) -> dict[str, Any]:
    return {"id": name, "mean": [0.5, -1.0], "variance": [1.0, 2.0], **fields}


def assert_untouched(directory: IndexDirectory) -> None:
    """Nothing is left of a build, nor of the directory that it made."""
    assert not directory.path.exists()


@pytest.fixture
def directory(tmp_path: Path) -> IndexDirectory:
    return IndexDirectory(tmp_path / "index")


def no_rows(path: Path) -> Path:
    table = pa.table(
        {"id": pa.array([], pa.string()), **dict.fromkeys(("mean", "variance"), pa.array([], pa.list_(pa.float32())))}
    )
    pq.write_table(table, path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def no_lines(path: Path) -> Path:
    return write_lines(path.with_suffix(".jsonl"), [])


@pytest.mark.parametrize("write", [no_rows, no_lines])
@pytest.mark.parametrize("options", [BuildOptions(), SKIP])
def test_a_corpus_without_documents_is_an_error_and_leaves_nothing(
    tmp_path: Path, directory: IndexDirectory, write: Any, options: BuildOptions
) -> None:
    corpus = write(tmp_path / "empty")
    with pytest.raises(SourceError, match=f"no documents in {corpus}"):
        build_index([corpus], directory, options)
    (directory.path / "rejected.jsonl").unlink(missing_ok=True)
    assert_untouched(directory)
    write_lines(tmp_path / "full.jsonl", [row("a")])
    assert build_index([corpus, tmp_path / "full.jsonl"], directory, options).manifest.documents == 1


def test_a_corpus_of_bad_rows_only_is_an_error(tmp_path: Path, directory: IndexDirectory) -> None:
    corpus = write_lines(tmp_path / "bad.jsonl", [row("a", variance=[1.0, 0.0]), row("b", mean=[1.0, None])])
    listed = directory.path / "rejected.jsonl"
    with pytest.raises(SourceError) as stopped:
        build_index([corpus], directory, SKIP)
    assert str(stopped.value) == (
        f"all 2 rows of {corpus} were left out, which {listed} lists. The first: {corpus} line 1, column 'variance': "
        "component 1: it must be above zero (the value is 0.0)"
    )
    assert len(listed.read_text().splitlines()) == 2
    write_lines(corpus, [row("a")])
    assert build_index([corpus], directory, SKIP).manifest.source.rejected == 0


@pytest.mark.parametrize(("first", "second", "places"), [
    ((0, 2), (0, 3), ("a.jsonl line 3", "a.jsonl line 4")),
    ((0, 0), (0, 5), ("a.jsonl line 1", "a.jsonl line 6")),
    ((0, 1), (1, 4), ("a.jsonl line 2", "b.jsonl line 5")),
])  # fmt: skip
def test_an_id_that_stands_twice_is_refused_by_both_places(
    tmp_path: Path, directory: IndexDirectory, first: tuple[int, int], second: tuple[int, int], places: tuple[str, str]
) -> None:
    files = [[row(f"{name}{line}") for line in range(6)] for name in "ab"]
    for file, line in (first, second):
        files[file][line]["id"] = "twice"
    corpus = [write_lines(tmp_path / f"{name}.jsonl", rows) for name, rows in zip("ab", files, strict=True)]
    with pytest.raises(DuplicateIdError) as caught:
        build_index(corpus, directory, BuildOptions(segment_docs=4))
    assert f"'twice' at {tmp_path / places[0]} and {tmp_path / places[1]}" in str(caught.value)
    assert_untouched(directory)
    files[second[0]][second[1]]["id"] = "once"
    write_lines(corpus[second[0]], files[second[0]])
    assert build_index(corpus, directory, BuildOptions(segment_docs=4)).manifest.documents == 12


def test_only_a_few_of_many_duplicate_ids_are_named(tmp_path: Path, directory: IndexDirectory) -> None:
    corpus = write_lines(tmp_path / "a.jsonl", [row(f"d{line % 10}") for line in range(30)])
    with pytest.raises(DuplicateIdError, match=r"10 are not: .*; and 5 more") as caught:
        build_index([corpus], directory)
    assert str(caught.value).count(" at ") == 5


def test_an_integer_and_a_string_that_read_the_same_are_one_id(tmp_path: Path, directory: IndexDirectory) -> None:
    strings = write_corpus(tmp_path / "a.parquet", random_gaussians(3, 2), ["5", "6", "7"])
    table = pq.read_table(strings)
    pq.write_table(table.set_column(0, "id", pa.array([7, 8, 9])), tmp_path / "b.parquet")
    with pytest.raises(DuplicateIdError, match=r"'7' at .*a\.parquet row 2 and .*b\.parquet row 0"):
        build_index([strings, tmp_path / "b.parquet"], directory)


def test_another_k_in_a_later_segment_is_refused(tmp_path: Path, directory: IndexDirectory) -> None:
    rows = [row(f"d{line}") for line in range(9)]
    rows[7] |= {"mean": [1.0], "variance": [1.0]}
    corpus = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(SourceError, match=r"a\.jsonl line 8.*it has 1 components; the corpus has 2"):
        build_index([corpus], directory, BuildOptions(segment_docs=4))
    assert_untouched(directory)


def test_a_bad_row_stops_the_build_by_its_place(tmp_path: Path, directory: IndexDirectory) -> None:
    rows = [row(f"d{line}") for line in range(9)]
    rows[6]["variance"] = [1.0, -2.0]
    corpus = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(SourceError, match=r"a\.jsonl line 7, column 'variance': component 1: .*above zero.*--on-error"):
        build_index([corpus], directory, BuildOptions(segment_docs=4))
    assert_untouched(directory)
    rows[6]["variance"] = [1.0, 2.0]
    assert build_index([write_lines(corpus, rows)], directory, BuildOptions(segment_docs=4)).manifest.documents == 9


def test_the_live_index_outlives_a_corpus_that_cannot_be_indexed(tmp_path: Path, directory: IndexDirectory) -> None:
    build_index([write_lines(tmp_path / "a.jsonl", [row("a"), row("b")])], directory)
    for rows in ([row("c"), row("c")], [row("d", mean=[1.0])], []):
        with pytest.raises(SourceError):
            build_index([write_lines(tmp_path / "bad.jsonl", rows)], directory)
        assert directory.verify().generation == 1
        assert LocalSearcher(directory).document("b").id == "b"


def with_bad_rows(path: Path) -> tuple[Path, list[int]]:
    """20 rows of which every third is bad, and the numbers of those lines."""
    rows = [row(f"d{line}") for line in range(20)]
    for line in range(1, 20, 3):
        rows[line]["variance"] = [1.0, 0.0]
    return write_lines(path, rows), list(range(2, 21, 3))


def rejected_lines(path: Path) -> list[int]:
    return [json.loads(line)["row"] for line in path.read_text().splitlines()]


def test_skipped_rows_are_listed_and_counted(tmp_path: Path, directory: IndexDirectory) -> None:
    corpus, bad = with_bad_rows(tmp_path / "a.jsonl")
    summary = build_index([corpus], directory, SKIP)
    assert (summary.manifest.documents, summary.manifest.source.rejected) == (13, 7)
    assert rejected_lines(directory.path / "rejected.jsonl") == bad
    first = json.loads((directory.path / "rejected.jsonl").read_text().splitlines()[0])
    assert first["file"] == str(corpus)
    assert (first["column"], first["value"]) == ("variance", 0.0)
    assert "above zero" in first["reason"]


def test_skipped_rows_go_where_they_are_told_to(tmp_path: Path, directory: IndexDirectory) -> None:
    corpus, bad = with_bad_rows(tmp_path / "a.jsonl")
    rejected = tmp_path / "rejected here.jsonl"
    rejected.write_text("of an earlier build\n" * 100)
    build_index([corpus], directory, SKIP.model_copy(update={"rejected_to": rejected}))
    assert rejected_lines(rejected) == bad
    assert not (directory.path / "rejected.jsonl").exists()


def build_that_dies_after(
    segments: int, corpus: Path, directory: IndexDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Has a build fail when it has read that many segments."""
    finish, ordinals = DocumentWriter.finish, itertools.count()

    def finish_some(*arguments: Any) -> Any:
        if next(ordinals) == segments:
            raise OSError("the disk is gone")
        return finish(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(DocumentWriter, "finish", finish_some)
        with pytest.raises(OSError, match="the disk is gone"):
            build_index([corpus], directory, SKIP)


@pytest.mark.parametrize("finished", [0, 1, 2, 3])
def test_no_skipped_row_is_listed_twice_by_a_build_that_resumes(
    tmp_path: Path, directory: IndexDirectory, monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    corpus, bad = with_bad_rows(tmp_path / "a.jsonl")
    build_that_dies_after(finished, corpus, directory, monkeypatch)
    summary = build_index([corpus], directory, SKIP)
    assert summary.resumed_documents == 4 * finished
    assert (summary.manifest.documents, summary.manifest.source.rejected) == (13, 7)
    assert rejected_lines(directory.path / "rejected.jsonl") == bad


def test_skipped_rows_are_listed_once_after_a_segment_was_lost_and_the_next_run_died(
    tmp_path: Path, directory: IndexDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, bad = with_bad_rows(tmp_path / "a.jsonl")
    build_that_dies_after(3, corpus, directory, monkeypatch)
    lost = sorted(directory.segments.iterdir())[0] / "gaussians.npy"
    lost.write_bytes(bytes(lost.stat().st_size))
    build_that_dies_after(1, corpus, directory, monkeypatch)
    summary = build_index([corpus], directory, SKIP)
    assert summary.manifest.source.rejected == 7
    assert rejected_lines(directory.path / "rejected.jsonl") == bad


@pytest.mark.parametrize("kept", [0, 10])
def test_a_list_of_skipped_rows_that_lost_its_end_is_made_again(
    tmp_path: Path, directory: IndexDirectory, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    corpus, bad = with_bad_rows(tmp_path / "a.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(index.build_work, "encode_segments", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_index([corpus], directory, SKIP)
    with (directory.staging / "rejected.jsonl").open("r+b") as file:
        file.truncate(kept)
    summary = build_index([corpus], directory, SKIP)
    assert (summary.manifest.documents, summary.manifest.source.rejected) == (13, 7)
    assert rejected_lines(directory.path / "rejected.jsonl") == bad


def test_a_file_that_cannot_be_written_to_stops_the_build(tmp_path: Path, directory: IndexDirectory) -> None:
    corpus, _ = with_bad_rows(tmp_path / "a.jsonl")
    options = SKIP.model_copy(update={"rejected_to": tmp_path / "no such folder" / "rejected.jsonl"})
    with pytest.raises(FileNotFoundError):
        build_index([corpus], directory, options)
    assert build_index([corpus], directory, SKIP).manifest.documents == 13


@pytest.fixture
def open_files() -> Iterator[None]:
    """Fails a test that leaves files open. A file that is read ahead is closed by the thread that reads it."""

    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before, deadline = count(), time.monotonic() + PATIENCE
    yield
    while count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
@pytest.mark.usefixtures("open_files")
def test_no_file_stays_open_after_a_build_or_its_failure(tmp_path: Path, directory: IndexDirectory) -> None:
    corpus, _ = with_bad_rows(tmp_path / "a.jsonl")
    build_index([corpus], directory, SKIP)
    with pytest.raises(SourceError):
        build_index([corpus], directory)
    assert np.isclose(LocalSearcher(directory).document("d0").gaussian.means[0, 0], 0.5)


def test_no_file_of_the_users_is_lost_to_rejected_rows(directory: IndexDirectory, tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "corpus.jsonl", [row("a"), row("b", mean=[1.0])])
    with pytest.raises(BuildError, match="is one of the sources"):
        build_index([corpus], directory, SKIP.model_copy(update={"rejected_to": corpus}))
    assert len(corpus.read_text().splitlines()) == 2
    kept = tmp_path / "kept.jsonl"
    kept.write_text("mine\n")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1")
    with pytest.raises(SourceError, match=r"broken\.parquet"):
        build_index([broken], directory, SKIP.model_copy(update={"rejected_to": kept}))
    assert kept.read_text() == "mine\n"
    build_index([corpus], directory, SKIP.model_copy(update={"rejected_to": kept}))
    assert [json.loads(line)["row"] for line in kept.read_text().splitlines()] == [2]


def test_a_corpus_that_changes_while_it_is_read_is_refused(
    directory: IndexDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_lines(tmp_path / "corpus.jsonl", [row("a"), row("b")])
    digest = Corpus.digest

    def digest_then_change(self: Corpus) -> str:
        found = digest(self)
        write_lines(corpus, [row("a"), row("c")])
        return found

    monkeypatch.setattr(Corpus, "digest", digest_then_change)
    with pytest.raises(SourceError, match="changed while it was read"):
        build_index([corpus], directory)
    assert_untouched(directory)
