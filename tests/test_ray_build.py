"""Builds on a Ray cluster of two nodes: the index is the local build's to the last byte, and so are the refusals."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

import index.distributed.ray_work
from index import BuildOptions, IndexDirectory, build_index
from index.distributed.ray_place import RayOptions, ray_place
from index.distributed.segment_tasks import complete_segment, read_slice
from index.distributed.tasks import Tasks
from index.errors import (
    BuildError,
    DeviceUnavailableError,
    DuplicateIdError,
    GaussearchError,
    SourceError,
)
from index.manifest import IndexKind
from tests.conftest import random_gaussians, write_corpus
from tests.ray_builds import Builds, contents
from tests.ray_cluster import ray_nodes

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray, of a cluster of two nodes, with this process as a driver."""
    with ray_nodes(1, 1) as nodes, nodes.connected():
        import ray

        yield ray


@pytest.fixture
def builds(ray: Any, tmp_path: Path) -> Builds:
    assert len(ray.nodes()) == 2
    return Builds(tmp_path)


OPTIONS: dict[IndexKind, dict[str, Any]] = {kind: {} for kind in IndexKind}
OPTIONS[IndexKind.FAISS] = {"factory": "IVF32,SQ8"}


@pytest.mark.parametrize("kind", [kind for kind in IndexKind if kind is not IndexKind.AUTO])
def test_every_kind_is_the_local_build_to_the_last_byte(builds: Builds, sample: Path, kind: IndexKind) -> None:
    built = builds.both([sample / "documents.parquet"], kind=kind, segment_docs=900, **OPTIONS[kind])
    assert built.manifest.kind is kind
    assert len(built.manifest.segments) > 2
    assert builds.there.verify() == built.manifest


def test_so_is_one_that_is_fitted_on_queries(builds: Builds, sample: Path) -> None:
    sources, queries = [sample / "documents.parquet"], sample / "queries.parquet"
    built = builds.both(sources, kind="fastscan", queries=queries, segment_docs=1700)
    assert built.manifest.measured_recall is not None
    assert built.manifest.measured_recall.source == "queries"


def test_and_one_that_becomes_flat_because_nothing_else_does(builds: Builds, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "few.parquet", random_gaussians(50, 4))
    built = builds.both([corpus], kind="fastscan", segment_docs=20)
    assert (built.manifest.kind, "64 documents or more" in str(built.manifest.reason)) == (IndexKind.FLAT, True)


def corpora(folder: Path) -> list[Path]:
    """Files of every format, in which segments begin and end anywhere; of one, what is in a batch decides columns."""
    names = iter(f"{name}{row}" for name in "abcdef" for row in range(20_000))

    def table(rows: int, seed: int) -> tuple[list[str], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        its = random_gaussians(rows, 2, seed)
        return [next(names) for _ in range(rows)], its.means.numpy(), its.variances.numpy()

    ids, means, variances = table(5000, 1)
    columns = {"id": ids, "mean": list(means), "variance": list(variances), "n": list(range(5000))}
    pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=1700)
    ids, means, variances = table(9500, 2)
    with (folder / "b.jsonl").open("w") as file:
        for row, (name, mean, variance) in enumerate(zip(ids, means.tolist(), variances.tolist(), strict=True)):
            rest: dict[str, Any] = {"n": row + 0.5} if row > 8900 else {"n": row}
            rest |= {"rare": "x"} if row in (8500, 9400) else {}
            file.write(json.dumps({"id": name, "mean": mean, "variance": variance, **rest}) + "\n" * (1 + row % 3))
    ids, means, variances = table(700, 3)
    np.savez(folder / "c.npz", id=np.array(ids), mean=means, variance=variances)
    ids, means, variances = table(1, 4)
    columns = {"id": ids, "mean": list(means), "variance": list(variances)}
    pyarrow.feather.write_feather(pa.table(columns), folder / "d.feather")
    ids, means, variances = table(2500, 5)
    columns = {"id": ids, "mean": list(means), "variance": list(variances)}
    pyarrow.feather.write_feather(pa.table(columns), folder / "e.arrow", chunksize=900)
    return [folder / name for name in ("a.parquet", "b.jsonl", "c.npz", "d.feather", "e.arrow")]


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_files_of_any_format_are_cut_where_the_local_build_cuts_them(
    builds: Builds, tmp_path: Path, on_error: str
) -> None:
    built = builds.both(corpora(tmp_path), segment_docs=2100, on_error=on_error)
    assert [entry.documents for entry in built.manifest.segments] == [*[2100] * 8, 901]


def with_bad_rows(path: Path, rows: int) -> Path:
    """Lines of which every seventh is bad, those around the ends of segments of 100 among them."""
    lines = []
    for row in range(rows):
        line: dict[str, Any] = {"id": f"d{row}", "mean": [1.0 * row, 0.0], "variance": [1.0, 2.0]}
        if row % 7 == 0:
            line["variance"] = [1.0, 0.0]
        lines.append("no JSON" if row % 91 == 5 else json.dumps(line))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_bad_rows_are_skipped_and_listed_as_the_local_build_does(builds: Builds, tmp_path: Path) -> None:
    files = [with_bad_rows(tmp_path / "a.jsonl", 450)]
    table = pa.Table.from_pylist([
        {"id": f"p{row}", "mean": [0.0, row], "variance": [1.0, float(row % 5)]} for row in range(600)
    ])  # fmt: skip
    pq.write_table(table, tmp_path / "b.parquet")
    built = builds.both([*files, tmp_path / "b.parquet"], segment_docs=100, on_error="skip")
    listed = (builds.there.path / "rejected.jsonl").read_text().splitlines()
    assert len(listed) == built.manifest.source.rejected > 100
    assert len(built.manifest.segments) > 6


def test_a_bad_row_stops_the_build_by_the_same_words_and_nothing_is_left(builds: Builds, tmp_path: Path) -> None:
    good = write_corpus(tmp_path / "good.parquet", random_gaussians(60, 2))
    builds.both([good], segment_docs=25)
    lines = with_bad_rows(tmp_path / "a.jsonl", 6).read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[1:5], *lines]) + "\n")
    here, there = builds.said(SourceError, [good, tmp_path / "a.jsonl"], segment_docs=7)
    assert here == there
    assert "a.jsonl line 5, column 'variance': component 1" in there
    assert builds.there.verify().generation == 1
    assert not builds.there.staging.exists()
    assert len(list(builds.there.segments.iterdir())) == 3


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_corpus_without_a_good_row_is_refused_by_the_same_words(
    builds: Builds, tmp_path: Path, on_error: str
) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "a", "mean": [1], "variance": [0]}\n' * 2)
    here, there = builds.said(SourceError, [tmp_path / "a.jsonl"], on_error=on_error)
    assert here == there
    assert "variance" in there


def test_an_id_that_stands_in_two_slices_is_named_with_both_places(
    builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Hashes are compared in many partitions.
    monkeypatch.setattr(index.distributed.ray_work, "PARTITION_IDS", 50)
    first = write_corpus(tmp_path / "a.parquet", random_gaussians(300, 2))
    builds.both([first], segment_docs=70)
    again = write_corpus(tmp_path / "b.parquet", random_gaussians(9, 2), ids=[*"abcdefg", "d250", "d3"])
    here, there = builds.said(DuplicateIdError, [first, again], segment_docs=70)
    assert here == there
    assert f"2 are not: 'd250' at {first} row 250 and {again} row 7; 'd3' at {first} row 3" in there
    assert builds.there.verify().generation == 1


def test_a_document_that_no_vector_holds_is_named(builds: Builds, tmp_path: Path) -> None:
    gaussians = random_gaussians(30, 2)
    gaussians.means[25], gaussians.variances[25] = 100, 1e-38
    here, there = builds.said(SourceError, [write_corpus(tmp_path / "a.parquet", gaussians)], segment_docs=10)
    assert here == there
    assert "a.parquet row 25, document 'd25'" in there


def killing_once(task: Callable[..., Any], where: str, marker: Path) -> Callable[..., Any]:
    """The task, whose worker dies in the middle of it the first time: where it calls that function."""

    def killing(*arguments: Any) -> Any:
        import importlib

        module, _, name = where.rpartition(".")
        owner = importlib.import_module(module)
        original = getattr(owner, name)

        def dying(*its: Any, **named: Any) -> Any:
            try:
                marker.touch(exist_ok=False)
            except FileExistsError:
                return original(*its, **named)
            return os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, dying)
        try:
            return task(*arguments)
        finally:
            setattr(owner, name, original)

    return killing


@pytest.mark.parametrize(
    ("name", "task", "where"),
    [
        ("read_slice", read_slice, "index.document_writing.write_ids"),
        ("complete_segment", complete_segment, "index.build_encoding.complete_segment"),
    ],
)
def test_a_worker_that_is_killed_is_replaced(
    builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, task: Callable[..., Any], where: str
) -> None:
    marker = tmp_path / "killed"
    monkeypatch.setattr(index.distributed.ray_work, name, killing_once(task, where, marker))
    builds.both([write_corpus(tmp_path / "a.parquet", random_gaussians(100, 2))], segment_docs=30)
    assert marker.exists()


def test_no_more_tasks_run_at_a_time_than_were_asked_for(ray: Any, tmp_path: Path) -> None:
    folder = tmp_path / "running"
    folder.mkdir()

    def alone(number: int) -> int:
        mine = folder / str(number)
        mine.touch()
        others = len(list(folder.iterdir()))
        mine.unlink()
        return others

    assert list(Tasks(ray, 1).run(alone, [(number,) for number in range(20)])) == [1] * 20


def test_what_a_task_raises_first_in_order_is_raised(ray: Any) -> None:
    def failing(number: int) -> int:
        if number:
            raise SourceError(f"number {number}")
        return number

    results = Tasks(ray).run(failing, [(0,), (1,), (2,)])
    assert next(results) == 0
    with pytest.raises(SourceError, match="number 1"):
        next(results)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"model": "package:any"}, BuildError, "gaussearch encode"),
        ({"device": "cuda:0"}, BuildError, "Ray chooses which GPU"),
        ({"device": "cuda"}, DeviceUnavailableError, "no node of the Ray cluster has a GPU"),
    ],
)
def test_what_a_cluster_cannot_build_is_refused(
    builds: Builds, sample: Path, options: dict[str, Any], error: type[GaussearchError], said: str
) -> None:
    with pytest.raises(error, match=said):
        builds.on_ray([sample / "documents.parquet"], **options)


def test_a_build_is_not_gone_on_with_where_it_was_not_begun(
    builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "a.parquet", random_gaussians(40, 2))
    with monkeypatch.context() as patch:
        patch.setattr(index.distributed.ray_work.RayWork, "encode", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            builds.on_ray([corpus], segment_docs=9)
    with pytest.raises(
        BuildError, match="was begun on a Ray cluster, with --ray: finish it that way, or add --restart"
    ):
        build_index([corpus], builds.there, BuildOptions(segment_docs=9))
    with pytest.raises(BuildError, match="another segment_docs"):
        builds.on_ray([corpus], segment_docs=8)
    again = builds.on_ray([corpus], segment_docs=9)
    assert again.resumed_documents == 40
    build_index([corpus], builds.here, BuildOptions(segment_docs=9))
    assert contents(builds.there) == contents(builds.here)


def test_an_index_that_is_up_to_date_is_left_alone(builds: Builds, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.parquet", random_gaussians(40, 2))
    build_index([corpus], builds.there, BuildOptions(segment_docs=9))
    assert builds.on_ray([corpus], segment_docs=9).up_to_date


def test_sources_and_index_may_be_named_from_the_folder_that_the_driver_is_in(
    builds: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "a.parquet", random_gaussians(40, 2))
    monkeypatch.chdir(tmp_path)
    with ray_place(RayOptions()) as place:
        build_index(["a.parquet"], IndexDirectory("there"), BuildOptions(segment_docs=9), place=place)
    build_index(["a.parquet"], IndexDirectory("here"), BuildOptions(segment_docs=9))
    assert contents(builds.there) == contents(builds.here)
