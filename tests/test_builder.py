"""The batch build: what it publishes, when it has nothing to do, and what it says on the way."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest
import torch

import index.build_encoding
from index import BuildOptions, Encoding, Gaussians, IndexDirectory, LocalSearcher, build_index
from index.document_writing import DocumentWriter
from index.errors import SourceError
from index.row_checks import RowChecker
from index.sources import DEFAULT_BATCH_ROWS, SourceBatch
from tests.conftest import MakeIndex, random_gaussians, write_corpus
from tests.rankings import assert_exact, assert_identical, exact_scores, ids_of


class Recorder:
    """Progress that remembers its phases: name, total, and the documents it was told of."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int | None, list[int]]] = []

    def phase(self, name: str, total: int | None) -> None:
        self.phases.append((name, total, []))

    def advance(self, documents: int) -> None:
        self.phases[-1][2].append(documents)


def files_of(directory: IndexDirectory) -> dict[str, bytes]:
    """Every file under an index but the lock, by its path there."""
    found = {str(path.relative_to(directory.path)): path for path in directory.path.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != ".lock"}


@pytest.mark.parametrize(("n", "segment_docs", "sizes"), [
    (1, 1, [1]), (1, 10, [1]), (9, 10, [9]), (10, 10, [10]), (11, 10, [10, 1]), (20, 10, [10, 10]), (3, 1, [1, 1, 1]),
])  # fmt: skip
def test_a_corpus_is_cut_into_segments_of_at_most_segment_docs(
    make_index: MakeIndex, n: int, segment_docs: int, sizes: list[int]
) -> None:
    documents = random_gaussians(n, 3)
    directory = make_index(documents, segment_docs=segment_docs)
    manifest = directory.verify()
    assert [segment.documents for segment in manifest.segments] == sizes
    assert (manifest.documents, manifest.k, manifest.generation) == (n, 3, 1)
    queries = random_gaussians(2, 3, seed=1)
    assert_exact(LocalSearcher(directory).search(queries, n), exact_scores(queries, documents), ids_of(n), n)


def test_segments_run_over_the_ends_of_files(tmp_path: Path) -> None:
    documents = random_gaussians(25, 3)
    files = [
        write_corpus(tmp_path / f"{start:02}.parquet", documents[start:stop], ids_of(25)[start:stop])
        for start, stop in ((0, 7), (7, 8), (8, 21), (21, 25))
    ]
    build_index(files, IndexDirectory(tmp_path / "index"), BuildOptions(segment_docs=10))
    searcher = LocalSearcher(IndexDirectory(tmp_path / "index"))
    assert [segment.documents for segment in searcher.manifest.segments] == [10, 10, 5]
    assert [searcher.document_at(number).id for number in range(25)] == ids_of(25)
    assert searcher.manifest.source.files == [f"{start:02}.parquet" for start in (0, 7, 8, 21)]


@pytest.mark.parametrize("encoding", Encoding)
def test_documents_encoded_in_several_blocks_are_those_encoded_in_one(
    make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch, encoding: Encoding
) -> None:
    documents = random_gaussians(50, 3)
    whole = make_index(documents, name="whole", encoding=encoding)
    monkeypatch.setattr(index.build_encoding, "BLOCK_NUMBERS", 7 * encoding.width(3))
    cut = make_index(documents, name="cut", encoding=encoding)
    assert [entry.blake3 for entry in cut.verify().segments] == [entry.blake3 for entry in whole.verify().segments]


def test_two_builds_write_the_same_bytes_but_for_their_time(make_index: MakeIndex) -> None:
    documents = random_gaussians(30, 5)
    contents = []
    for name in ("one", "other"):
        files = files_of(make_index(documents, name=name, segment_docs=8, text=["é"] * 30))
        current = files.pop("CURRENT")
        assert current.startswith(b"00000001.json ")
        assert files.pop("manifests/00000001.blake3") == current
        manifest = json.loads(files.pop("manifests/00000001.json"))
        assert manifest.pop("created_at").endswith("+00:00")
        assert manifest["source"].pop("files") == [f"{name}.parquet"]
        contents.append((manifest, files))
    assert contents[0] == contents[1]
    assert len(contents[0][1]) == 4 * 5


def test_the_standardisation_is_that_of_the_corpus_as_one_mixture(make_index: MakeIndex) -> None:
    documents = random_gaussians(40, 4, center=30.0, deviation=2.0)
    means, variances = documents.means.double(), documents.variances.double()
    expected = (means.var(dim=0, correction=0) + variances.mean(dim=0)).sqrt()
    for segment_docs in (9, 100):
        manifest = make_index(documents, name=str(segment_docs), segment_docs=segment_docs).manifest()
        fitted = manifest.standardisation.restore()
        torch.testing.assert_close(fitted.shift, means.mean(dim=0), rtol=1e-12, atol=0)
        torch.testing.assert_close(fitted.scale, expected, rtol=1e-12, atol=0)


def test_an_index_that_is_up_to_date_is_left_alone(make_index: MakeIndex, tmp_path: Path) -> None:
    directory = make_index(random_gaussians(20, 3), segment_docs=8)
    before = {path: path.stat().st_mtime_ns for path in directory.path.rglob("*") if path.is_file()}
    moved = (tmp_path / "index.parquet").rename(tmp_path / "moved.parquet")
    summary = build_index([moved], directory, BuildOptions(segment_docs=8))
    assert (summary.up_to_date, summary.manifest.generation, summary.resumed_documents) == (True, 1, 0)
    assert summary.manifest == directory.manifest()
    after = {path: path.stat().st_mtime_ns for path in directory.path.rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    assert all(after[path] == before[path] for path in before if path.name != ".lock")


@pytest.mark.parametrize(
    "change", [{"encoding": "full"}, {"segment_docs": 5}, {"on_error": "skip"}, {"variance_as": "std"}]
)
def test_another_setting_publishes_the_next_generation(make_index: MakeIndex, change: dict[str, object]) -> None:
    documents = random_gaussians(20, 3)
    first = make_index(documents).manifest()
    second = make_index(documents, **change).verify()
    assert (first.generation, second.generation) == (1, 2)
    assert {entry.id for entry in first.segments}.isdisjoint(entry.id for entry in second.segments)


def test_another_corpus_publishes_the_next_generation(make_index: MakeIndex) -> None:
    make_index(random_gaussians(20, 3))
    documents, queries = random_gaussians(30, 5, seed=1), random_gaussians(3, 5, seed=2)
    directory = make_index(documents)
    assert directory.verify().generation == 2
    assert_exact(LocalSearcher(directory).search(queries, 5), exact_scores(queries, documents), ids_of(30), 5)
    assert not directory.staging.exists()


def test_a_damaged_index_is_built_anew_by_the_same_command(make_index: MakeIndex) -> None:
    documents = random_gaussians(20, 3)
    directory = make_index(documents)
    expected = LocalSearcher(directory).search(documents, 5)
    damaged = directory.segments / directory.manifest().segments[0].id / "gaussians.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x7f")
    again = make_index(documents)
    assert again.verify().generation == 2
    assert_identical(LocalSearcher(again).search(documents, 5), expected)


def test_a_build_says_how_far_it_is(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(25, 3))
    progress = Recorder()
    summary = build_index([corpus], IndexDirectory(tmp_path / "index"), BuildOptions(segment_docs=10), progress)
    told = [(name, total, sum(advances)) for name, total, advances in progress.phases]
    assert told == [("checking the corpus for changes", None, 0), ("reading", None, 25), ("encoding", 25, 25)]
    assert not summary.up_to_date
    assert summary.bytes == sum(path.stat().st_size for path in summary.path.glob("segments/*/*[!n]"))
    assert summary.seconds > 0


def test_the_corpus_streams_through_memory_a_few_batches_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked, written, most = 0, 0, 0
    check, add = RowChecker.check, DocumentWriter.add

    def counting_check(*arguments: Any) -> Any:
        nonlocal checked, most
        checked += 1
        most = max(most, checked - written)
        return check(*arguments)

    def counting_add(writer: DocumentWriter, batch: SourceBatch) -> None:
        nonlocal written
        add(writer, batch)
        written += 1

    monkeypatch.setattr(RowChecker, "check", counting_check)
    monkeypatch.setattr(DocumentWriter, "add", counting_add)
    n = 40 * DEFAULT_BATCH_ROWS
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(n, 1))
    build_index([corpus], IndexDirectory(tmp_path / "index"), BuildOptions(segment_docs=n))
    assert checked == written == 40
    # The one that is written, the one that waits and the one that has just been checked.
    assert most <= 3


@pytest.mark.parametrize("variance_as", ["variance", "logvar", "std"])
def test_variances_are_stored_as_variances_however_they_are_given(tmp_path: Path, variance_as: str) -> None:
    documents = random_gaussians(12, 3)
    given = {"variance": documents.variances, "logvar": documents.variances.log(), "std": documents.variances.sqrt()}
    table = {"key": list(range(12)), "mu": list(documents.means.numpy()), "s": list(given[variance_as].numpy())}
    pyarrow.feather.write_feather(pa.table(table), str(tmp_path / "corpus.feather"))
    options = BuildOptions.model_validate(
        {"variance_as": variance_as, "id_column": "key", "mean_column": "mu", "variance_column": "s"}
    )
    build_index([tmp_path / "corpus.feather"], IndexDirectory(tmp_path / "index"), options)
    found = LocalSearcher(IndexDirectory(tmp_path / "index")).document("7").gaussian
    np.testing.assert_allclose(found.variances, documents.variances[7:8], rtol=1e-6)


def test_a_document_too_far_from_the_others_for_float32_is_named(tmp_path: Path) -> None:
    variances = np.ones((30, 2), np.float32)
    variances[:, 1] = 1e4
    variances[23, 1] = 1e-37
    means = np.full((30, 2), 3.0, np.float32)
    documents = Gaussians.from_arrays(means, variances)
    corpus, directory = tmp_path / "corpus.parquet", IndexDirectory(tmp_path / "index")
    write_corpus(corpus, documents)
    with pytest.raises(SourceError) as caught:
        build_index([corpus], directory, BuildOptions(segment_docs=20))
    assert f"{corpus} row 23, document 'd23': column" in str(caught.value)
    assert "does not fit torch.float32" in str(caught.value)
    write_corpus(corpus, documents[:23])
    assert build_index([corpus], directory, BuildOptions(segment_docs=20)).manifest.documents == 23


def test_an_index_inside_its_source_is_no_part_of_the_corpus(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.parquet", random_gaussians(12, 3))
    directory = IndexDirectory(tmp_path / "index")
    for sources in ([tmp_path], [f"{tmp_path}/**/*ar*"]):
        first, again = (build_index(sources, directory, BuildOptions(segment_docs=5)) for _ in range(2))
        assert (first.manifest.documents, again.up_to_date) == (12, True)
    with pytest.raises(SourceError, match=f"no corpus was named outside of {directory.path}"):
        build_index([directory.segments], directory)
