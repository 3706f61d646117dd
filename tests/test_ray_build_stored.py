"""Builds on a Ray cluster of an index in object storage, which no machine holds more of than it works on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import index.distributed.ray_work
from index import BuildOptions, IndexDirectory, LocalSearcher, build_index
from index.distributed.ray_place import RayOptions, ray_place
from index.distributed.segment_tasks import Read, read_slice
from index.errors import BuildError, SourceError
from tests.conftest import random_gaussians, write_corpus
from tests.object_storage import FaultyStorage, Storage, storage_for
from tests.ray_builds import contents, without_dates
from tests.ray_cluster import ray_nodes

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def faulty() -> Iterator[FaultyStorage]:
    """Storage, and this process as a driver of a cluster whose workers can reach it."""
    faulty = FaultyStorage()
    with faulty.serving(), pytest.MonkeyPatch.context() as patch:
        for name, value in faulty.environment().items():
            patch.setenv(name, value)
        with ray_nodes(1, 1) as nodes, nodes.connected():
            yield faulty


@pytest.fixture
def storage(faulty: FaultyStorage, tmp_path: Path) -> Iterator[Storage]:
    with storage_for(faulty, tmp_path, tmp_path.name) as storage:
        yield storage


def build(sources: list[Path], directory: IndexDirectory, **options: Any) -> Any:
    with ray_place(RayOptions()) as place:
        return build_index(sources, directory, BuildOptions.model_validate(options), place=place)


def stored(storage: Storage) -> dict[str, object]:
    """All that lies in storage, as index contents are compared."""
    found = storage.objects().items()
    return without_dates({name: data for name, data in found if name != "CURRENT" and not name.endswith(".blake3")})


@pytest.mark.parametrize("kind", ["flat", "ivf-fastscan", "hnsw"])
def test_what_lies_in_storage_is_the_local_build_to_the_last_byte(
    storage: Storage, sample: Path, tmp_path: Path, kind: str
) -> None:
    options = {"kind": kind, "segment_docs": 1400}
    here = IndexDirectory(tmp_path / "here")
    build_index([sample / "documents.parquet"], here, BuildOptions.model_validate(options))
    there = storage.on("driver")
    built = build([sample / "documents.parquet"], there, **options)
    assert stored(storage) == contents(here)
    # The driver has fetched nothing of the documents themselves.
    assert list(there.path.rglob("gaussians.npy")) == []
    its = storage.on("driver")
    assert its.verify() == built.manifest
    query = random_gaussians(1, built.manifest.k)
    assert LocalSearcher(its).search(query, 5)[0].ids == LocalSearcher(here).search(query, 5)[0].ids


def test_a_driver_that_failed_is_gone_on_after_on_another_machine(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, here = write_corpus(tmp_path / "a.parquet", random_gaussians(100, 2)), IndexDirectory(tmp_path / "here")
    build_index([corpus], here, BuildOptions(segment_docs=9))

    def failing(site: Any, files: Any, part: Any, k: Any) -> Read:
        if part.ordinal == 6:
            raise OSError("the machine fails")
        return read_slice(site, files, part, k)

    with monkeypatch.context() as patch:
        patch.setattr(index.distributed.ray_work, "read_slice", failing)
        with pytest.raises(OSError, match="the machine fails"):
            build([corpus], storage.on("one"), segment_docs=9)
    assert {f"staging/{ordinal:05d}.json" for ordinal in range(6)} <= set(storage.objects())
    with pytest.raises(BuildError, match="another segment_docs"):
        build([corpus], storage.on("another"), segment_docs=8)
    with pytest.raises(BuildError, match="another segment_docs"):
        build([corpus], storage.on("one"), segment_docs=8)
    before = storage.faulty.asked("PUT", r"segments/.*-0000[0-5]/gaussians\.npy")
    resumed = build([corpus], storage.on("another"), segment_docs=9)
    assert resumed.resumed_documents >= 54
    assert storage.faulty.asked("PUT", r"segments/.*-0000[0-5]/gaussians\.npy") == before
    assert stored(storage) == contents(here)


def test_what_cannot_be_built_leaves_the_live_index_and_nothing_else(storage: Storage, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a.parquet", random_gaussians(40, 2))
    build([corpus], storage.on("driver"), segment_docs=9)
    before = storage.objects()
    again = write_corpus(tmp_path / "b.parquet", random_gaussians(9, 2), ids=[*"abcdefgh", "d3"])
    with pytest.raises(SourceError, match=r"'d3' at .*a\.parquet row 3 and .*b\.parquet row 8"):
        build([corpus, again], storage.on("driver"), segment_docs=9)
    assert storage.objects() == before


def test_skipped_rows_are_listed_from_wherever_they_were_found(storage: Storage, tmp_path: Path) -> None:
    rows = [{"id": row, "mean": [1], "variance": [row % 3]} for row in range(50)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    listed = tmp_path / "listed.jsonl"
    built = build([tmp_path / "a.jsonl"], storage.on("driver"), segment_docs=9, on_error="skip", rejected_to=listed)
    assert (built.manifest.documents, built.manifest.source.rejected) == (33, 17)
    assert len(listed.read_text().splitlines()) == 17
    assert not any("staging" in name for name in storage.objects())
