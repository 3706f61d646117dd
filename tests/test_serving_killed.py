"""A service that is killed at any moment: what it has acknowledged is there, and nothing is there by halves."""

import contextlib
import math
import random
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from index import BuildOptions, IndexDirectory, build_index
from tests.conftest import random_gaussians, write_corpus
from tests.forked_server import ForkedServers
from tests.write_history import Connection, History, K, NoAnswer, Write

BASE = 12
CLIENTS = 4
KILLS = 200
KILLS_PER_INDEX = 10
LATEST = 0.2
"""Seconds after which a service is killed at the latest: a few writes of each client; as many as these take where that
is longer."""
PATIENCE = 5.0
SHARED = ["shared-0", "shared-1"]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedServers]:
    with ForkedServers(tmp_path_factory.mktemp("servers")) as started:
        yield started


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    corpus = write_corpus(folder / "corpus.parquet", random_gaussians(BASE, K), request=[-1] * BASE)
    build_index([corpus], IndexDirectory(folder / "index"), BuildOptions(segment_docs=40, device="cpu"))
    return folder / "index"


class Clients:
    """Clients that write until their service is gone."""

    def __init__(self, history: History, seed: int) -> None:
        self._history, self._numbers, self._seed = history, count(1), seed
        self._lock = threading.Lock()

    def write_until_killed(self, port: int, client: int, turn: int) -> int:
        """How many writes were acknowledged to one client, which also reads what it has written."""
        rng = random.Random(f"{self._seed}-{client}-{turn}")
        made: list[Write] = []
        acknowledged = 0
        connection = Connection(port)
        with contextlib.closing(connection):
            try:
                while True:
                    if rng.random() < 0.05:
                        body = '{"retrain": true}' if rng.random() < 0.3 else "{}"
                        assert connection.ask("POST", "/v1/index/compact", body)[0] in (202, 409)
                    write = self._new(rng, made)
                    connection.send(write)
                    acknowledged += 1
                    status, _, _ = connection.ask("GET", f"/v1/documents/{write.own[0]}")
                    assert status == (404 if write.deletes else 200), "the next reader does not see it"
            except NoAnswer:
                return acknowledged

    def _new(self, rng: random.Random, made: list[Write]) -> Write:
        with self._lock:
            number = next(self._numbers)
            what = rng.random()
            if what < 0.2 and made:
                own = made.pop(rng.randrange(len(made))).own
                write = Write(number, "POST", "/v1/documents/delete", [*own, rng.choice(SHARED)], own)
            elif what < 0.3 and made:
                # The other document of it stays, and nobody changes it any more.
                own = made.pop(rng.randrange(len(made))).own[:1]
                write = Write(number, "DELETE", f"/v1/documents/{own[0]}", own, own)
            else:
                own = [f"r{number}-{place}" for place in range(rng.choice([2, 2, 3, 20]))]
                ids = [*own, *rng.sample(SHARED, rng.randrange(3))]
                write = Write(number, "POST", "/v1/documents", ids, own)
                made.append(write)
            self._history.writes.append(write)
        return write


def settle(history: History, made: set[int], port: int) -> None:
    """Sends again what was not acknowledged: it is made now, unless it has been."""

    def send(write: Write) -> None:
        with contextlib.closing(Connection(port)) as connection:
            _, answer, replayed = connection.send(write)
        assert replayed == (write.number in made) or (write.method == "DELETE" and "code" in answer), answer

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(send, [write for write in history.writes if write.acknowledged == math.inf]))


def test_kills_at_random_moments_lose_nothing_that_was_acknowledged(
    servers: ForkedServers, built: Path, memory: Path
) -> None:
    rng = random.Random(20)
    acknowledged = unanswered = kept = 0
    lived = 0.0
    for place in range(KILLS // KILLS_PER_INDEX):
        directory = IndexDirectory(shutil.copytree(built, memory / f"index-{place}"))
        history = History(BASE)
        clients = Clients(history, seed=place)
        made: set[int] = set()
        with ThreadPoolExecutor(CLIENTS) as pool:
            for turn in range(KILLS_PER_INDEX):
                pid, port = servers.serve(directory.path)
                settle(history, made, port)
                at_work = [pool.submit(clients.write_until_killed, port, client, turn) for client in range(CLIENTS)]
                latest = max(LATEST, 2 * CLIENTS * lived / (acknowledged + 1))
                seconds = rng.uniform(0, min(PATIENCE, latest))
                time.sleep(seconds)
                servers.kill(pid)
                lived += seconds
                acknowledged += sum(client.result() for client in at_work)
                made = history.check(directory)
                unanswered += sum(write.acknowledged == math.inf for write in history.writes)
                kept += len(made)
        pid, port = servers.serve(directory.path)
        settle(history, made, port)
        with contextlib.closing(Connection(port)) as connection:
            # And so does a write that was acknowledged, long before.
            for write in history.writes[:3]:
                assert connection.send(write)[2] or write.method == "DELETE"
        servers.kill(pid)
        assert history.check(directory) == set()
        shutil.rmtree(directory.path)
    print(f"{KILLS} kills: {acknowledged} writes acknowledged, {unanswered} not, {kept} of these made")
    assert acknowledged > KILLS
    # Kills hit writes before they are made as well as between that and their answer.
    assert 0 < kept < unanswered


@pytest.mark.parametrize("deletes", [False, True])
def test_a_kill_at_any_step_of_a_write_leaves_it_whole_or_not_there(
    servers: ForkedServers, built: Path, memory: Path, deletes: bool
) -> None:
    outcomes: list[tuple[bool, bool]] = []
    first = Write(1, "POST", "/v1/documents", ["a", "b"], ["a", "b"])
    before = shutil.copytree(built, memory / "before")
    pid, port = servers.serve(before)
    with contextlib.closing(Connection(port)) as connection:
        connection.send(first)
    servers.kill(pid)
    for moment in count(1):
        directory = IndexDirectory(shutil.copytree(before, memory / "index"))
        second = Write(2, "POST", "/v1/documents/delete" if deletes else "/v1/documents", ["a", "b"], ["a", "b"])
        history = History(BASE, [first, second])
        pid, port = servers.serve(directory.path, moment)
        with contextlib.closing(Connection(port)) as connection, contextlib.suppress(*NoAnswer):
            connection.send(second)
        answered = second.acknowledged < math.inf
        if answered:
            servers.kill(pid)
        else:
            assert servers.wait(pid) == -9
        made = history.check(directory)
        outcomes.append((answered, answered or second.number in made))
        pid, port = servers.serve(directory.path)
        settle(history, made, port)
        third = Write(3, "POST", "/v1/documents", ["c"], ["c"])
        history.writes.append(third)
        with contextlib.closing(Connection(port)) as connection:
            _, answer, _ = connection.send(third)
        servers.kill(pid)
        assert history.check(directory) == set()
        generations = directory.generations()
        assert generations[-1] == answer["index"]["generation"]
        # The one before the last is the one that the second write made, whoever published it, and no killed one.
        assert [each["changes"] for each in _described(directory, generations)] == [2, 3]
        shutil.rmtree(directory.path)
        if answered:
            break
    print(f"{len(outcomes)} moments")
    assert len(outcomes) > 15
    made_at = [whole for _, whole in outcomes]
    assert made_at == sorted(made_at), "once it is made it stays so"
    assert {whole for answered, whole in outcomes if not answered} == {False, True}


def _described(directory: IndexDirectory, numbers: list[int]) -> list[dict[str, int]]:
    return [{"changes": directory.generation(number).changes} for number in numbers]
