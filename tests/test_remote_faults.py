"""What goes wrong on the way to object storage: it is made up for, or told in a line that says what to do, and nothing
half-written stays."""

import dataclasses
import re
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from index import BuildOptions, IndexDirectory, LocalSearcher, build_index, delete_documents
from index.errors import (
    CorruptIndexError,
    InvalidOptionError,
    PublicationConflictError,
    StorageDeniedError,
    StorageError,
    StorageUnreachableError,
)
from index.remote.fetching import _all
from index.remote.objects import MARK
from tests.conftest import random_gaussians, write_corpus
from tests.object_storage import BUCKET, IMPATIENT, Storage

K = 4
QUERIES = random_gaussians(4, K, seed=2)
PASSING = [
    pytest.param({"what": what, **how}, id=f"{what}-{how.get('times', 1)}")
    for what, how in [
        ("SlowDown", {"times": 3}),
        ("InternalError", {"times": 3}),
        ("cut", {"times": 2}),
        ("lose", {"times": 2}),
        ("truncate", {"times": 3}),
        ("trickle", {"times": 50}),
    ]
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.parquet", random_gaussians(40, K, seed=1))


@pytest.fixture
def built(storage: Storage, corpus: Path) -> Storage:
    """An index of two segments in storage."""
    build(storage, corpus)
    return storage


def build(storage: Storage, corpus: Path, machine: str = "builder") -> Any:
    return build_index([corpus], storage.on(machine), BuildOptions(device="cpu", segment_docs=25)).manifest


def found(index: IndexDirectory) -> list[list[str]]:
    return [list(each.ids) for each in LocalSearcher(index, device="cpu").search(QUERIES, 5)]


def unfinished(storage: Storage, machine: str) -> list[Path]:
    """What has been begun and not ended in a cache."""
    return [path for path in (storage.folder / machine).rglob("*") if path.name.endswith((".part", ".tmp"))]


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_waited_for_by_a_reader(built: Storage, fault: dict[str, Any]) -> None:
    expected = found(built.on("before"))
    names = ("CURRENT", r"manifests/.*json", r"segment\.json", "gaussians")
    struck = [built.fail(name=name, **fault) for name in names]
    assert found(built.on("reader")) == expected
    assert all(each.reached.is_set() for each in struck)
    assert not unfinished(built, "reader")


@pytest.mark.parametrize("fault", [each for each in PASSING if each.id not in ("truncate-3", "trickle-50")])
def test_what_passes_is_waited_for_by_a_writer(storage: Storage, corpus: Path, fault: dict[str, Any]) -> None:
    """Also where it has been done and the answer was lost: of a conditional put it is known then whose it was."""
    names = (r"manifests/.*json", "CURRENT", "blake3", r"segment\.json", "gaussians")
    struck = [storage.fail(method="PUT", name=name, **fault) for name in names]
    assert build(storage, corpus).generation == 1
    assert all(each.reached.is_set() for each in struck)
    assert storage.on("reader").verify().documents == 40
    assert storage.on("reader").generations() == [1]


@pytest.mark.parametrize(("generation", "name"), [(2, "manifests/00000002.json"), (3, "CURRENT")])
def test_the_answer_to_a_writer_that_lost_is_lost(built: Storage, generation: int, name: str) -> None:
    """What is there then is another's, and is not taken for its own."""
    first, second = built.on("first"), built.on("second")
    with first.lock():
        delete_documents(["d1"], second)
        lost = built.fail("lose", method="PUT", name=name)
        manifest = first.manifest().model_copy(update={"generation": generation, "created_by": "another"})
        with pytest.raises(PublicationConflictError, match=r"has published generation 2 .* run the command again"):
            first.publish(manifest)
    assert lost.reached.is_set()
    reader = built.on("reader")
    assert (reader.verify().generation, reader.generations(), reader.next_generation()) == (2, [1, 2], generation + 1)
    assert reader.manifest().created_by != "another"


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "AccessDenied"])
@pytest.mark.parametrize(("method", "name"), [("GET", "CURRENT"), ("GET", "gaussians"), ("PUT", ""), ("GET", "^$")])
def test_a_refusal_says_what_storage_says_and_what_to_do(built: Storage, code: str, method: str, name: str) -> None:
    built.fail(code, method=method, name=name, times=10_000)
    with pytest.raises(StorageDeniedError) as told:
        delete_documents(["d1"], built.on("other"))
    message = str(told.value)
    assert f"storage says {code}: " in message
    assert "see to the credentials in the environment" in message
    assert built.uri in message
    assert "\n" not in message
    built.faulty.heal()
    assert built.on("reader").manifest().generation == 1
    assert not unfinished(built, "other")


@pytest.mark.parametrize("what", ["cut", "SlowDown", "truncate"])
def test_what_does_not_pass_is_told(built: Storage, what: str) -> None:
    built.fail(what, name="gaussians", times=10_000)
    with pytest.raises(
        StorageUnreachableError, match=rf"{built.uri}/segments/.*/gaussians\.npy .*(tries|times)"
    ) as told:
        LocalSearcher(built.on("reader"))
    assert told.value.__cause__ is not None, "for who must find out more"
    assert not unfinished(built, "reader")
    built.faulty.heal()
    assert len(LocalSearcher(built.on("reader"))) == 40


def test_a_server_that_says_nothing_is_not_waited_for_for_ever(built: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.remote.client.PATIENCE", IMPATIENT)
    built.fail("hang", name="CURRENT", times=10_000)
    with pytest.raises(StorageUnreachableError, match=rf"{built.uri}/CURRENT cannot be read, after several tries"):
        built.on("reader").current_token()


def test_a_file_may_take_longer_to_send_than_an_answer_to_come(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a slow line: no byte that is sent is taken for a sign of life."""
    monkeypatch.setattr("index.remote.client.PATIENCE", dataclasses.replace(IMPATIENT, upload=120.0))
    (tmp_path / "file").write_bytes(b"x" * 100)
    index = storage.on("one")
    slow = storage.fail("hang", method="PUT", name="file")
    storage.fail("hang", name="CURRENT", times=10_000)
    with ThreadPoolExecutor(1) as threads:
        sent = threads.submit(index.storage.put, "file", tmp_path / "file")
        slow.reached.wait()
        with pytest.raises(StorageUnreachableError):
            index.current_token()
        assert not sent.done()
        slow.release.set()
        sent.result()
    assert storage.objects() == {"file": b"x" * 100}


def test_names_of_attributes_are_such_as_all_storage_takes() -> None:
    assert re.fullmatch("[a-z]+", MARK), "of Azure, they are identifiers; of S3, they come back in small letters"


def test_what_fails_leaves_nothing_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller lets go of a lock then, and who takes that would write to the same files."""
    told = threading.Event()

    def waited(pending: Sequence[Future[object]]) -> None:
        told.set()
        wait(pending)

    monkeypatch.setattr("index.remote.fetching.wait", waited)
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(told.wait)
        failed: Future[object] = threads.submit(int, "x")
        try:
            with pytest.raises(ValueError, match="invalid literal"):
                _all([failed, slow])
            assert slow.done()
        finally:
            told.set()


def test_nobody_there_is_told(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageUnreachableError, match=r"CURRENT cannot be read, after several tries.*AWS_ENDPOINT_URL"):
        storage.on("reader").manifest()


@pytest.mark.usefixtures("storage")
def test_a_bucket_that_is_not_there_is_told(corpus: Path) -> None:
    index = IndexDirectory.of("s3://elsewhere/index")
    with pytest.raises(StorageError, match=r"s3://elsewhere/index cannot be used: storage says NoSuchBucket.*make it"):
        index.manifest()
    with pytest.raises(StorageError, match="NoSuchBucket"):
        build_index([corpus], index)


def test_a_large_file_goes_on_where_it_was_cut(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "large.parquet", random_gaussians(1500, 700, seed=1))
    monkeypatch.setattr("index.remote.objects.CHUNK_BYTES", 100_000)
    build_index([corpus], storage.on("builder"), BuildOptions(device="cpu"))
    assert storage.asked("POST", "gaussians"), "it has been put in parts"
    cut = storage.fail("truncate", name="gaussians", times=4)
    assert storage.on("reader").verify().documents == 1500
    assert cut.times == 0


def test_an_object_that_is_damaged_is_named(built: Storage) -> None:
    built.fail("flip", name="ids", times=10_000)
    with pytest.raises(CorruptIndexError, match=rf"{built.uri}/segments/.*/ids\.arrow does not match its checksum"):
        LocalSearcher(built.on("reader"))
    assert not list((built.folder / "reader").rglob("ids.arrow*"))
    assert not unfinished(built, "reader")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vectors.faiss", "vectors.faiss has 3 bytes, not"),
        ("segment.json", "segment.json does not match its checksum"),
        ("manifests/00000001.json", "00000001.json does not match the checksum in .*CURRENT"),
    ],
)
def test_an_object_that_is_another_is_named(built: Storage, name: str, said: str) -> None:
    (whole,) = [each for each in built.objects() if each.endswith(name)][:1]
    built.faulty.put(f"{built.prefix}/{whole}", b"bad")
    with pytest.raises(CorruptIndexError, match=f"{built.uri}/.*{said}"):
        LocalSearcher(built.on("reader"))


@pytest.mark.parametrize("name", ["vectors.faiss", "segment.json", "manifests/00000001.json"])
def test_an_object_that_is_missing_is_named(built: Storage, name: str) -> None:
    (gone,) = [each for each in built.objects() if each.endswith(name)][:1]
    built.faulty.delete(f"{built.prefix}/{gone}")
    with pytest.raises(CorruptIndexError, match=re.escape(f"{built.uri}/{gone} is missing")):
        LocalSearcher(built.on("reader"))


def test_current_that_is_no_token_is_told(built: Storage, corpus: Path) -> None:
    built.faulty.put(f"{built.prefix}/CURRENT", b"x" * 500)
    with pytest.raises(CorruptIndexError, match=rf"{built.uri}/CURRENT has 500 bytes, and such an object at most 200"):
        built.on("reader").manifest()
    built.faulty.put(f"{built.prefix}/CURRENT", b"nonsense")
    with pytest.raises(CorruptIndexError, match=rf"{built.uri}/CURRENT does not name a manifest and its checksum"):
        built.on("reader").manifest()
    # What is damaged is built anew, under a number that is free.
    assert build(built, corpus).generation == 2
    assert built.on("reader").verify().documents == 40


def test_verify_looks_at_the_objects(built: Storage) -> None:
    reader = built.on("reader")
    manifest = reader.verify()
    reader.verify_stored(manifest)
    (name,) = [each for each in built.objects() if each.endswith("00000/gaussians.npy")]
    data = built.objects()[name]
    built.faulty.put(f"{built.prefix}/{name}", data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptIndexError, match=re.escape(f"{built.uri}/{name} does not match its checksum")):
        reader.verify_stored(manifest)


def test_settings_that_cannot_be_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAUSSEARCH_CACHE_BYTES", "much")
    with pytest.raises(InvalidOptionError, match="GAUSSEARCH_CACHE_BYTES is 'much': give a number of bytes"):
        IndexDirectory.of(f"s3://{BUCKET}/index")
