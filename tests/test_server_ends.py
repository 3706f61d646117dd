"""How a server ends, and what it lives through, in processes of their own: signals with a full queue, a search that
hangs, no more file descriptors.
"""

import contextlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from index import IndexDirectory
from tests.conftest import MakeIndex, random_gaussians
from tests.serving import PATIENCE, Served, wait_until
from tests.sockets import Peer, ask, request
from tests.test_server_process import COMMAND, SEARCH, Server


class Held(Server):
    """A server whose searches wait until `gate` is there."""

    def __init__(self, folder: Path, directory: IndexDirectory, *arguments: str) -> None:
        self.gate = folder / "gate"
        # The service tries an index by a search before it is ready.
        self.gate.touch()
        command = [sys.executable, "-m", "tests.held_server", str(self.gate)]
        super().__init__(folder / "log", "--index", str(directory.path), "--port", "0", *arguments, command=command)
        self.gate.unlink()

    def begun(self) -> int:
        """How many searches have begun."""
        return len(self.gate.with_suffix(".begun").read_text())

    def waiting(self) -> float:
        """How many queries wait for a search."""
        lines = self.request("GET", "/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith("gaussearch_queue_rows")).split()[1])

    def says(self, message: str) -> None:
        """Returns once that is in the log."""
        wait_until(lambda: any(message in line["message"] for line in self.lines()))


def kill(server: Server) -> None:
    server.process.kill()
    server.process.wait(PATIENCE)


@pytest.fixture
def held(tmp_path: Path, served: Served) -> Iterator[Callable[..., Held]]:
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> Held:
            server = Held(tmp_path, served.directory, *arguments)
            stack.callback(kill, server)
            return server

        yield start


def test_a_full_queue_is_served_to_its_end(held: Callable[..., Held]) -> None:
    server = held("--queue-rows", "20", "--max-batch-rows", "4")
    with ThreadPoolExecutor(21) as clients:
        first = clients.submit(ask, server.port)
        wait_until(lambda: server.begun() == 2)
        asked = [clients.submit(ask, server.port) for _ in range(20)]
        wait_until(lambda: server.waiting() == 20)
        assert ask(server.port).status == 429
        server.process.terminate()
        server.says("Shutting down")
        server.gate.touch()
        assert [future.result().status for future in (first, *asked)] == [200] * 21
    assert server.process.wait(PATIENCE) == 0
    # The index was tried; then a lone search, and the others in batches of four.
    assert server.begun() == 1 + 1 + 5


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_ends_it_at_once(
    held: Callable[..., Held], first: signal.Signals, second: signal.Signals
) -> None:
    server = held()
    with Peer(server.port) as peer:
        peer.write(request())
        wait_until(lambda: server.begun() == 2)
        server.process.send_signal(first)
        server.says("Shutting down")
        server.process.send_signal(second)
        assert server.process.wait(PATIENCE) == 128 + second
        assert peer.read_all() == []
    server.says("1 requests go without an answer")


def test_a_search_that_hangs_keeps_nobody_for_longer_than_shutdown_seconds(held: Callable[..., Held]) -> None:
    server = held("--shutdown-seconds", "1")
    with Peer(server.port) as searching, Peer(server.port) as sending:
        searching.write(request())
        wait_until(lambda: server.begun() == 2)
        sending.write(request()[:-3])
        assert server.waiting() == 0
        server.process.terminate()
        for peer in (searching, sending):
            answer = peer.read()
            assert (answer.status, answer.problem()) == (503, "not_ready")
        assert server.process.wait(PATIENCE) == 0
    server.says("a search has not come to its end")
    assert not any("Traceback" in str(line) for line in server.lines())


def test_without_file_descriptors_it_goes_on_and_recovers(tmp_path: Path, make_index: MakeIndex) -> None:
    """Whoever holds all connections keeps others out, and a new index too; afterwards both come in."""
    directory = make_index(random_gaussians(20, 5))
    command = ["bash", "-c", f'ulimit -n 80; exec {shlex.join(COMMAND)} "$@"', "bash"]
    server = Server(
        tmp_path / "log",
        *("--index", str(directory.path), "--port", "0", "--reload-seconds", "0.05"),
        command=command,
    )
    try:
        with Peer(server.port) as served_before, contextlib.ExitStack() as others:
            assert served_before.write(request()).read().status == 200
            for _ in range(100):
                others.enter_context(Peer(server.port))
            make_index(random_gaussians(30, 5, seed=1))
            wait_until(lambda: any("Too many open files" in line["message"] for line in server.lines()))
            assert served_before.write(request()).read().status == 200
        wait_until(lambda: server.request("GET", "/v1/index").json()["documents"] == 30)
        assert server.request("POST", "/v1/search", SEARCH).json()["index"]["generation"] == 2
        assert server.stop() == 0
    finally:
        kill(server)
