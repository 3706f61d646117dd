"""A thousand generations under load: every answer is of one of them, none fails, and none of them stays behind."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from index import AddOptions, BuildOptions, IndexDirectory, LocalSearcher, add_documents, build_index
from index.changes import roll_back
from index.durable import write_atomically
from tests.conftest import Serve, random_gaussians, write_corpus
from tests.serving import PATIENCE, Client, wait_until

ADMIN = "an-admin-key-of-enough-letters"
AUTHORISED = {"Authorization": f"Bearer {ADMIN}"}
K = 2
IDS = ["a", "b", "c", "d"]
QUERY = {"mean": [0.0] * K, "variance": [1.0] * K, "top_k": 10}
PUBLICATIONS = 1000
OUTSIDE_EVERY = 10


def corpus_of(folder: Path, version: int) -> Path:
    """All documents as a version of the corpus has them: their scores and payload tell which."""
    gaussians = random_gaussians(len(IDS), K)
    means, variances = gaussians.means.numpy(), gaussians.variances.numpy()
    means[:], variances[:] = version, 1
    return write_corpus(folder / "corpus.parquet", gaussians, IDS, version=[version] * len(IDS))


def body_of(version: int) -> dict[str, Any]:
    one = {"mean": [float(version)] * K, "variance": [1.0] * K, "payload": {"version": version}}
    return {"documents": [{"id": name, **one} for name in IDS]}


def score_of(version: int) -> float:
    return -K * version**2 / 2


@pytest.fixture
def directory(memory: Path) -> IndexDirectory:
    made = IndexDirectory(memory / "index")
    build_index([corpus_of(memory, 0)], made, BuildOptions(device="cpu"))
    return made


class Readers:
    """Clients that search one query after the other, each answer held to what an answer must be."""

    def __init__(self, client: Client, count: int) -> None:
        self._client, self._enough = client, threading.Event()
        self.seen: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        self.wrong: list[Any] = []
        self._thread = threading.Thread(target=asyncio.run_coroutine_threadsafe(self._all(), client._loop).result)

    async def _all(self) -> None:
        await asyncio.gather(*(self._read(seen) for seen in self.seen))

    async def _read(self, seen: list[tuple[int, int]]) -> None:
        while not self._enough.is_set():
            # Leaves the processor to publications, too.
            await asyncio.sleep(0.002)
            answer = await self._client.send("/v1/search", QUERY)
            content = answer.json()
            if answer.status_code != 200:
                self.wrong.append(content)
                return
            versions = {each["payload"]["version"] for each in content["results"]}
            whole = len(versions) == 1 and [each["id"] for each in content["results"]] == IDS
            version = min(versions, default=-1)
            if not whole or {each["score"] for each in content["results"]} != {score_of(version)}:
                self.wrong.append(content)
            seen.append((content["index"]["generation"], version))

    def more(self) -> None:
        """Returns once each has had further answers."""
        before = [len(seen) for seen in self.seen]
        wait_until(
            lambda: self.wrong or all(len(seen) > count + 2 for seen, count in zip(self.seen, before, strict=True))
        )
        assert not self.wrong

    def __enter__(self) -> "Readers":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join(PATIENCE)
        assert not self.wrong
        by_generation: dict[int, int] = {}
        for seen in self.seen:
            assert seen
            assert seen == sorted(seen), "a later answer is of an earlier generation"
            for generation, version in seen:
                assert by_generation.setdefault(generation, version) == version


def test_a_thousand_publications_under_load(directory: IndexDirectory, memory: Path, serve: Serve) -> None:
    client = serve(directory, admin_key=ADMIN, reload_seconds=0.01)
    generations: dict[int, int] = {}

    def publish(version: int) -> None:
        if version % OUTSIDE_EVERY == 0:
            add_documents([str(corpus_of(memory, version))], directory, AddOptions(wait=PATIENCE, device="cpu"))
            # As others do, it is not waited for, but for once in a while.
            if version % (5 * OUTSIDE_EVERY) == 0:
                wait_until(lambda: client.get("/v1/documents/a").json()["payload"] == {"version": version})
            return
        answer = client.post("/v1/documents", body_of(version), headers=AUTHORISED)
        assert answer.status_code == 200, answer.text
        generations[answer.json()["index"]["generation"]] = version

    def held() -> tuple[int, int]:
        gc.collect()
        searchers = sum(type(each) is LocalSearcher for each in gc.get_objects())
        return searchers, len(list(Path("/proc/self/fd").iterdir()))

    with Readers(client, 3) as readers:
        for version in range(1, 20):
            publish(version)
        before = held()
        for version in range(20, PUBLICATIONS + 1):
            publish(version)
        readers.more()
    after = held()
    # One is in use and one may be in the making, at either moment.
    assert after[0] <= before[0] + 1, "searchers of old generations are still there"
    assert after[1] <= before[1] + 3, "files of old generations are still open"
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert not [line for line in maps if str(directory.path) in line and "(deleted)" in line], "and still mapped"
    answers = {generation: version for seen in readers.seen for generation, version in seen}
    assert {generation: answers.get(generation, version) for generation, version in generations.items()} == generations
    assert len(answers) > 100
    assert client.metric("gaussearch_index_reload_failures_total") == 0
    assert directory.verify().documents == len(IDS)
    assert len(list(directory.segments.iterdir())) < 40


def files_of(directory: IndexDirectory) -> dict[str, int]:
    """Everything that lies in an index, by its inode: what is written anew has another."""
    found = {str(path): path.stat().st_ino for path in directory.path.rglob("*") if path.is_file()}
    return {name: inode for name, inode in found.items() if not name.endswith(".lock")}


@contextlib.contextmanager
def live_by_hand(directory: IndexDirectory) -> Iterator[None]:
    """CURRENT names a manifest that is another than its checksum says."""
    token = directory.current_token()
    write_atomically(directory.manifests / "00000009.json", b"{}")
    write_atomically(directory.current_file, b"00000009.json " + b"0" * 64 + b"\n")
    try:
        yield
    finally:
        write_atomically(directory.current_file, token.encode())


@contextlib.contextmanager
def damaged(directory: IndexDirectory, name: str) -> Iterator[None]:
    """A bit of the newest segment is not as it was."""
    path = directory.segments / directory.manifest().segments[-1].id / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    try:
        yield
    finally:
        path.write_bytes(data)


def require_refused(client: Client, directory: IndexDirectory, readers: Readers) -> None:
    """Writes are answered with write_failed, and leave everything as it is; searches go on."""
    before = files_of(directory)
    for _ in range(3):
        answer = client.post("/v1/documents", body_of(9), headers=AUTHORISED)
        assert (answer.status_code, answer.json()["code"]) == (503, "write_failed"), answer.text
        assert int(answer.headers["Retry-After"]) > 0
    assert client.request("DELETE", "/v1/documents/a", headers=AUTHORISED).status_code == 503
    assert client.post("/v1/index/compact", {"retrain": False}, headers=AUTHORISED).status_code == 202
    wait_until(lambda: not client.get("/v1/index").json()["compaction"]["running"])
    described = client.get("/v1/index").json()
    assert "CorruptIndexError" in described["compaction"]["last_error"]
    assert "CorruptIndexError" in described["reload"]["last_error"]
    assert described["generation"] == 1
    assert files_of(directory) == before
    readers.more()


def test_on_a_manifest_that_is_not_in_order_nothing_is_built(directory: IndexDirectory, serve: Serve) -> None:
    client = serve(directory, admin_key=ADMIN, reload_seconds=0.01)
    with Readers(client, 2) as readers:
        with live_by_hand(directory):
            require_refused(client, directory, readers)
        answer = client.post("/v1/documents", body_of(3), headers=AUTHORISED)
        assert answer.status_code == 200, answer.text
        wait_until(lambda: client.get("/v1/index").json()["reload"]["last_error"] is None)
        readers.more()
    assert directory.verify().documents == len(IDS)


@pytest.mark.parametrize("name", ["vectors.faiss", "gaussians.npy", "ids.arrow", "payload.arrow"])
@pytest.mark.parametrize("rolled_back", [False, True])
def test_on_a_damaged_generation_nothing_is_built(
    directory: IndexDirectory, memory: Path, serve: Serve, name: str, rolled_back: bool
) -> None:
    client = serve(directory, admin_key=ADMIN, reload_seconds=3600)
    with Readers(client, 2) as readers:
        add_documents([str(corpus_of(memory, 2))], directory, AddOptions(device="cpu"))
        with damaged(directory, name):
            require_refused(client, directory, readers)
            assert directory.generations() == [1, 2], "the last good generation is there to go back to"
            if rolled_back:
                roll_back(directory, 1)
        # Also where it has been repaired under the same name, which nothing but its checksum tells.
        answer = client.request("DELETE", "/v1/documents/none", headers=AUTHORISED)
        assert answer.json()["code"] == "document_not_found"
        expected = 0 if rolled_back else 2
        assert client.get("/v1/documents/a").json()["payload"] == {"version": expected}
        assert client.post("/v1/documents", body_of(3), headers=AUTHORISED).status_code == 200
        readers.more()
        assert client.get("/v1/index").json()["reload"]["last_error"] is None
    assert directory.verify().documents == len(IDS)


def test_a_folder_that_has_gone_is_not_made_anew(directory: IndexDirectory, serve: Serve) -> None:
    client = serve(directory, admin_key=ADMIN, reload_seconds=3600)
    moved = directory.path.rename(directory.path.with_name("moved"))
    answer = client.post("/v1/documents", body_of(1), headers=AUTHORISED)
    assert (answer.status_code, answer.json()["code"]) == (503, "write_failed")
    assert not directory.path.exists()
    moved.rename(directory.path)
    assert client.post("/v1/documents", body_of(1), headers=AUTHORISED).status_code == 200


def test_as_many_generations_are_kept_as_settings_say(directory: IndexDirectory, serve: Serve) -> None:
    client = serve(directory, admin_key=ADMIN, keep_generations=4)
    for version in range(1, 7):
        assert client.post("/v1/documents", body_of(version), headers=AUTHORISED).status_code == 200
    assert directory.generations() == [4, 5, 6, 7]
    for number in directory.generations():
        directory.verify(number)
