"""An index in object storage: what is found in it, and what lies there, are as in a directory."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index import (
    BuildOptions,
    CompactOptions,
    Gaussians,
    GenerationNotFoundError,
    IndexDirectory,
    LocalSearcher,
    Retention,
    WriteOptions,
    add_documents,
    back_up,
    build_index,
    compact_index,
    delete_documents,
    restore,
    roll_back,
)
from index.errors import CorruptIndexError, IndexLockedError, IndexNotFoundError, StorageError
from index.remote.objects import ObjectStorage
from index.remote.remote_index import RemoteIndex
from index.writer import IndexWriter
from tests.conftest import random_gaussians, write_corpus
from tests.object_storage import Storage

K = 5
DOCUMENTS = random_gaussians(70, K, seed=1)
QUERIES = random_gaussians(6, K, seed=2)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.parquet", DOCUMENTS, text=[f"text {row}" for row in range(len(DOCUMENTS))])


def options(kind: str = "flat", **others: object) -> BuildOptions:
    return BuildOptions.model_validate({"kind": kind, "segment_docs": 30, "device": "cpu", **others})


def found(searcher: LocalSearcher, queries: Gaussians = QUERIES) -> list[tuple[list[str], bytes]]:
    return [(list(each.ids), each.scores.tobytes()) for each in searcher.search(queries, 7)]


def lying_in(directory: IndexDirectory) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory.path)): path.read_bytes()
        for path in directory.path.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.mark.parametrize("kind", ["flat", "fastscan", "hnsw", "ivf-fastscan"])
def test_what_is_published_and_found_is_as_in_a_directory(
    kind: str, storage: Storage, tmp_path: Path, corpus: Path
) -> None:
    local = IndexDirectory(tmp_path / "local")
    built = [build_index([corpus], each, options(kind)).manifest for each in (local, storage.on("builder"))]
    assert built[0].model_copy(update={"created_at": built[1].created_at}) == built[1]
    there, here = storage.objects(), lying_in(local)
    assert there.keys() == here.keys()
    # A manifest says when it was made.
    assert {name for name in there if there[name] != here[name]} <= {
        "CURRENT",
        "manifests/00000001.json",
        "manifests/00000001.blake3",
    }
    searcher = LocalSearcher(storage.on("reader"), device="cpu")
    assert searcher.name == "index"
    assert found(searcher) == found(LocalSearcher(local, device="cpu"))
    assert searcher.document("d3").payload == {"text": "text 3"}


def test_each_change_leaves_what_it_leaves_in_a_directory(storage: Storage, tmp_path: Path, corpus: Path) -> None:
    """From two machines in turn, each of which has to see what the other has done."""
    more = write_corpus(tmp_path / "more.parquet", random_gaussians(9, K, seed=3), text=["more"] * 9)
    local = IndexDirectory(tmp_path / "local")
    kept = WriteOptions(keep_generations=2)
    for step, machine in enumerate(["one", "two", "one", "two", "one"]):
        for index in (local, storage.on(machine)):
            if step == 0:
                build_index([corpus], index, options())
            elif step == 1:
                delete_documents(["d0", "d11", "no such"], index, kept)
            elif step == 2:
                add_documents([more], index)
            elif step == 3:
                compact_index(index, CompactOptions(device="cpu"))
            else:
                roll_back(index, 3, kept)
        reader = storage.on("reader")
        assert reader.generations() == local.generations()
        assert reader.manifest().documents == local.manifest().documents
        assert found(LocalSearcher(reader, device="cpu")) == found(LocalSearcher(local, device="cpu"))
        assert {name.partition("/")[0] for name in storage.objects()} == {
            name.partition("/")[0] for name in lying_in(local)
        }
        assert len(storage.objects()) == len(lying_in(local))
    assert reader.verify() == reader.manifest()


def test_an_index_built_anew_of_its_documents_is_one(storage: Storage, corpus: Path) -> None:
    index = storage.on("one")
    build_index([corpus], index, options("fastscan"))
    before = index.manifest()
    delete_documents(["d1"], index)
    manifest = compact_index(index, CompactOptions(device="cpu", retrain=True))
    assert (manifest.documents, manifest.changes, manifest.source.files) == (69, 0, before.source.files)
    assert len(LocalSearcher(storage.on("two"), device="cpu")) == 69


def test_a_build_that_is_up_to_date_puts_nothing(storage: Storage, corpus: Path) -> None:
    build_index([corpus], storage.on("one"), options())
    asked = len(storage.faulty.requests)
    assert build_index([corpus], storage.on("two"), options()).up_to_date
    assert {method for method, _ in storage.faulty.requests[asked:]} == {"GET"}


def test_what_a_killed_build_has_put_whole_is_not_put_again(storage: Storage, corpus: Path) -> None:
    refused = storage.fail("AccessDenied", method="PUT", name="CURRENT")
    with pytest.raises(StorageError, match="AccessDenied"):
        build_index([corpus], storage.on("one"), options())
    assert refused.reached.is_set()
    segments = len(re.findall("gaussians", " ".join(storage.objects())))
    assert segments == 3
    assert "CURRENT" not in storage.objects()
    before = storage.asked("PUT", "gaussians.npy")
    # Its manifest has taken the number, and it cannot know whose that is.
    assert build_index([corpus], storage.on("one"), options()).manifest.generation == 2
    assert storage.asked("PUT", "gaussians.npy") == before
    assert storage.on("two").verify().documents == 70
    assert storage.on("two").generations() == [2]
    assert "manifests/00000001.json" not in storage.objects()


def test_a_backup_of_it_is_restored_there_and_in_a_directory(storage: Storage, tmp_path: Path, corpus: Path) -> None:
    index = storage.on("one")
    build_index([corpus], index, options())
    back_up(storage.on("two"), tmp_path / "backup.tar")
    delete_documents(["d1"], index)
    restore(tmp_path / "backup.tar", storage.on("two"))
    assert (index.manifest().generation, index.manifest().restores, index.manifest().documents) == (3, 1, 70)
    restore(tmp_path / "backup.tar", tmp_path / "local")
    assert found(LocalSearcher(tmp_path / "local", device="cpu")) == found(LocalSearcher(index, device="cpu"))


def test_a_pin_keeps_a_generation_from_writers_on_other_machines(storage: Storage, corpus: Path) -> None:
    one, two = storage.on("one"), storage.on("two")
    build_index([corpus], one, options())
    with one.lock():
        one.pin(1)
        with pytest.raises(GenerationNotFoundError, match=r"keeps no generation 9; it keeps 1"):
            one.pin(9)
    assert two.pinned() == {1}
    for name in ("d1", "d2", "d3"):
        delete_documents([name], two)
    assert one.generations() == [1, 3, 4]
    with one.lock():
        one.unpin(1)
    delete_documents(["d4"], two)
    assert one.generations() == [4, 5]
    assert not any(name.startswith("pins") for name in storage.objects())


def test_a_pin_keeps_a_generation_from_a_writer_that_has_begun(storage: Storage, corpus: Path) -> None:
    one, two = storage.on("one"), storage.on("two")
    build_index([corpus], one, options())
    delete_documents(["d1"], one)
    with two.lock():
        writer = IndexWriter(two)
        with one.lock():
            one.pin(1)
        with writer:
            writer.remove(pa.array(["d2"]))
            writer.publish(writer.entries())
    assert one.generations() == [1, 2, 3]
    assert one.verify(1).documents == 70


def test_of_who_pins_a_generation_and_who_removes_it_one_sees_the_other(
    storage: Storage, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = storage.on("one"), storage.on("two")
    build_index([corpus], one, options())
    delete_documents(["d1"], one)
    delete, pinned = ObjectStorage.delete, list[int]()

    def late(its: ObjectStorage, *names: str) -> None:
        """Pinned just before its record is removed, by who has looked whether it is there."""
        if names == ("manifests/00000001.blake3",) and not pinned:
            pinned.append(1)
            with one.lock():
                one.pin(1)
        delete(its, *names)

    monkeypatch.setattr(ObjectStorage, "delete", late)
    delete_documents(["d2"], two)
    assert pinned
    assert one.generations() == [1, 2, 3]
    with one.lock():
        one.unpin(1)
        storage.faulty.delete(f"{storage.prefix}/manifests/00000001.blake3")
        with pytest.raises(GenerationNotFoundError, match=r"generation 1 .* has just been removed by another writer"):
            one.pin(1)
    assert not one.pinned()


def test_retention_removes_what_old_generations_alone_need(storage: Storage, tmp_path: Path, corpus: Path) -> None:
    index = storage.on("one")
    build_index([corpus], index, options())
    old = {name for name in storage.objects() if name.startswith("segments/")}
    other = write_corpus(tmp_path / "other.parquet", random_gaussians(20, K, seed=8), text=["x"] * 20)
    build_index([other], index, options())
    assert old < set(storage.objects())
    reader = LocalSearcher(storage.on("reader"), device="cpu", manifest=index.generation(1))
    build_index([corpus], index, options(segment_docs=20))
    assert not old & set(storage.objects())
    # It has its files as long as it lives.
    assert reader.document("d5").id == "d5"


def test_a_reader_sees_a_publication_by_its_token(storage: Storage, corpus: Path) -> None:
    reader, writer = storage.on("reader"), storage.on("writer")
    with pytest.raises(IndexNotFoundError, match=rf"no index in {storage.uri}: .*CURRENT does not exist; build one"):
        reader.current_token()
    build_index([corpus], writer, options())
    before = reader.current_token()
    assert reader.current_token() == before
    searcher = LocalSearcher(reader, device="cpu")
    fetched = storage.asked("GET", "gaussians.npy")
    delete_documents(["d0"], writer)
    assert reader.current_token() != before
    assert len(LocalSearcher(reader, device="cpu", known=searcher)) == 69
    # The segments are those that it has.
    assert storage.asked("GET", "gaussians.npy") == fetched


def test_two_writers_on_one_machine_wait_for_each_other(storage: Storage, corpus: Path) -> None:
    build_index([corpus], storage.on("one"), options())
    with storage.on("one").lock(), pytest.raises(IndexLockedError, match="another process is writing"):
        delete_documents(["d0"], storage.on("one"))


def test_segments_put_from_elsewhere_are_published_as_they_are(storage: Storage, tmp_path: Path, corpus: Path) -> None:
    """As a build on many machines does: each puts segments, one names them."""
    local = IndexDirectory(tmp_path / "local")
    manifest = build_index([corpus], local, options()).manifest
    workers = [storage.on("one"), storage.on("two"), storage.on("three")]
    for entry, worker in zip(manifest.segments, workers, strict=True):
        worker.put_segment(local.segments / entry.id)
    driver = storage.on("driver")
    driver.storage.put("staging/plan.json", b"{}")
    with driver.lock():
        driver.publish(manifest, retention=Retention())
    assert storage.on("reader").verify() == manifest
    stored = driver.storage.get("staging/plan.json", 10)
    assert stored is not None
    assert stored.data == b"{}"
    assert [each.name for each in driver.storage.list("staging")] == ["staging/plan.json"]


def test_a_segment_that_is_not_whole_is_not_put(storage: Storage, tmp_path: Path, corpus: Path) -> None:
    local = IndexDirectory(tmp_path / "local")
    entry = build_index([corpus], local, options()).manifest.segments[0]
    ids = local.segments / entry.id / "ids.arrow"
    ids.write_bytes(ids.read_bytes()[:-1])
    with pytest.raises(CorruptIndexError, match=r"ids\.arrow has \d+ bytes, not \d+"):
        storage.on("one").put_segment(local.segments / entry.id)
    assert not storage.objects()


def test_a_segment_that_is_nowhere_is_not_published(storage: Storage, tmp_path: Path, corpus: Path) -> None:
    manifest = build_index([corpus], tmp_path / "local", options()).manifest
    index = storage.on("one")
    with index.lock(), pytest.raises(CorruptIndexError, match=r"segment\.json is missing"):
        index.publish(manifest)
    assert not any(name.startswith("segments") for name in storage.objects())
    assert storage.on("reader").generations() == []


def test_an_index_that_was_removed_and_built_anew_is_another(storage: Storage, tmp_path: Path, corpus: Path) -> None:
    """Its generations have the numbers of the first, and its segments may have the names."""
    one, two = storage.on("one"), storage.on("two")
    build_index([corpus], one, options())
    LocalSearcher(two, device="cpu")
    for name in storage.objects():
        storage.faulty.delete(f"{storage.prefix}/{name}")
    with pytest.raises(IndexNotFoundError):
        two.manifest()
    other = write_corpus(tmp_path / "other.parquet", random_gaussians(25, K, seed=8))
    build_index([other], two, options())
    assert one.generations() == [1]
    delete_documents(["d0"], one)
    assert (len(LocalSearcher(one, device="cpu")), two.generations()) == (24, [1, 2])
    assert one.verify(1).documents == 25


def test_what_a_dead_writer_has_left_goes_in_the_end(
    storage: Storage, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = storage.on("one")
    build_index([corpus], index, options())
    dead = "segments/000000000000-00000009-00000/gaussians.npy"
    storage.faulty.put(f"{storage.prefix}/{dead}", b"half")
    storage.faulty.put(f"{storage.prefix}/deletes/000000000000-00000009-00000-00000009.npy", b"half")
    storage.faulty.put(f"{storage.prefix}/notes.txt", b"not ours")
    (index.path / "cached" / "swept").unlink(missing_ok=True)
    delete_documents(["d0"], index)
    # It may be of a build that has not published yet.
    assert dead in storage.objects()
    monkeypatch.setattr("index.remote.removal.DEAD_DAYS", -1)
    (index.path / "cached" / "swept").unlink()
    delete_documents(["d1"], index)
    assert not [name for name in storage.objects() if "000000000000" in name]
    assert "notes.txt" in storage.objects()
    assert storage.on("two").verify().documents == 68


def test_a_writer_that_died_before_its_record_is_made_up_for(storage: Storage, corpus: Path) -> None:
    index = storage.on("one")
    build_index([corpus], index, options())
    storage.faulty.delete(f"{storage.prefix}/manifests/00000001.blake3")
    assert storage.on("two").generations() == [1]
    assert storage.on("two").verify(1).generation == 1
    delete_documents(["d0"], storage.on("two"))
    assert "manifests/00000001.blake3" in storage.objects()
    assert index.generations() == [1, 2]
    assert roll_back(index, 1).documents == 70


def test_it_travels_to_other_processes_by_its_location(storage: Storage) -> None:
    index = storage.on("one")
    kind, arguments = index.__reduce__()
    again = kind(*arguments)
    assert isinstance(again, RemoteIndex)
    assert (str(again), again.path) == (storage.uri, index.path)


def test_scores_are_those_of_the_definition(storage: Storage, corpus: Path) -> None:
    """Not only equal to what is found elsewhere."""
    build_index([corpus], storage.on("one"), options())
    searcher = LocalSearcher(storage.uri, device="cpu")
    for mine, slow in zip(searcher.search(QUERIES, 5), searcher.exhaustive_search(QUERIES, 5), strict=True):
        assert list(mine.ids) == list(slow.ids)
        np.testing.assert_allclose(mine.scores, slow.scores, rtol=1e-12)
