"""A program that serves indexes from forks of itself, for tests that kill what serves.

    python -m tests.forked_server FOLDER

Reads lines of JSON and answers each with one. {"serve": DIRECTORY, "moment": M} forks a process that serves the index
there, and says its pid and port once it is ready; where there is a moment, it kills itself at its M-th change of the
file system after that: a file opened for writing, synced, renamed or removed, a folder made or removed. {"wait": PID}
says how a process ended: its exit status, or minus the signal. FOLDER is for an index that it warms up with.

A fork has everything imported, which takes seconds, and a test has hundreds of them. This process starts no threads.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import uvicorn
from pydantic import SecretStr

from index import BuildOptions, IndexDirectory, build_index
from service.app import create_app
from service.logs import configure_logging
from service.server import uvicorn_options
from service.settings import ServiceSettings
from tests.faults import arm

ADMIN = "an-admin-key-of-enough-letters"
AUTHORISED = {"Authorization": f"Bearer {ADMIN}"}


class ForkedServers:
    """Such a program, for a test to talk to; leaving it ends it."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked_server", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        self._alive: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def serve(self, directory: Path, moment: int | None = None) -> tuple[int, int]:
        """The pid and port of a process that serves an index, once it is ready."""
        answer = self._ask({"serve": str(directory), "moment": moment})
        self._alive.add(answer["pid"])
        return answer["pid"], answer["port"]

    def wait(self, pid: int) -> int:
        """How that process ended, once it has."""
        status: int = self._ask({"wait": pid})["status"]
        self._alive.discard(pid)
        return status

    def kill(self, pid: int) -> None:
        """Ends that process as `kill -9` does."""
        os.kill(pid, signal.SIGKILL)
        assert self.wait(pid) == -signal.SIGKILL

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def serve(directory: str, ready: Callable[[int], None], moment: int | None = None) -> None:
    """Serves an index on a port that the system chooses until it is told to end; `ready` is told the port."""
    configure_logging("critical", "text")
    torch.set_num_threads(1)
    settings = ServiceSettings(
        index=Path(directory),
        admin_key=SecretStr(ADMIN),
        reload_seconds=0.05,
        threads=1,
        log_level="error",
        timeout_ms=60_000,
    )
    app = create_app(settings)
    server = uvicorn.Server(uvicorn.Config(app, **uvicorn_options(settings)))
    live = app.state.gaussearch.live
    take_up = live._take_up

    def taken_up(token: str, started: float) -> None:
        first = not live.ready
        take_up(token, started)
        if first:
            if moment is not None:
                arm("kill", moment)
            ready(port)

    live._take_up = taken_up
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        server.run(sockets=[listening])


def in_a_fork(work: Callable[[Callable[[int], None]], object]) -> tuple[int, IO[str]]:
    """The pid of a fork that does `work`, and the pipe on which it says a number."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            work(lambda number: (os.write(writer, f"{number}\n".encode()), None)[1])
        finally:
            os._exit(0)
    os.close(writer)
    return child, os.fdopen(reader)


def warm_up(folder: Path) -> None:
    """Imports what serving and writing import on first use, so that no fork has to do it again."""
    names = folder / "modules.json"

    def note() -> None:
        # In one step: who sees the file kills this process.
        beside = folder / "modules.tmp"
        beside.write_text(json.dumps([*sys.modules]))
        beside.replace(names)

    def build(_: Callable[[int], None]) -> None:
        corpus = pa.table({"id": ["a", "b"], "mean": [[0.0], [1.0]], "variance": [[1.0], [1.0]]})
        pq.write_table(corpus, folder / "warm.parquet")
        build_index([folder / "warm.parquet"], IndexDirectory(folder / "warm"), BuildOptions(device="cpu"))
        note()

    pid, pipe = in_a_fork(build)
    with pipe:
        os.waitpid(pid, 0)
    built = json.loads(names.read_text())

    def serve_and_note(ready: Callable[[int], None]) -> None:
        # What has been imported is known only from within, once the requests have been answered.
        signal.signal(signal.SIGUSR1, lambda *_: note())
        serve(str(folder / "warm"), ready)

    pid, pipe = in_a_fork(serve_and_note)
    with pipe:
        port = int(pipe.readline())
    names.unlink()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=AUTHORISED, trust_env=False, timeout=60) as client:
        document = {"id": "c", "mean": [0.5], "variance": [1.0], "payload": {"n": 1}}
        client.post("/v1/documents", json={"documents": [document]}, headers={"Idempotency-Key": "k"})
        client.post("/v1/documents/delete", json={"ids": ["a"]})
        client.post("/v1/search", json={"mean": [0.0], "variance": [1.0]})
        client.post("/v1/index/compact", json={"retrain": True})
        while client.get("/v1/index").json()["compaction"]["running"]:
            time.sleep(0.01)
    os.kill(pid, signal.SIGUSR1)
    while not names.exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for name in [*built, *json.loads(names.read_text())]:
        if name not in sys.modules:
            importlib.import_module(name)
    gc.freeze()  # so that collections in the forks do not copy this process's memory


def main(folder: Path) -> None:
    warm_up(folder)
    for line in sys.stdin:
        question = json.loads(line)
        if "serve" in question:
            pid, pipe = in_a_fork(lambda ready, asked=question: serve(asked["serve"], ready, asked["moment"]))  # type: ignore[misc]
            with pipe:
                said = pipe.readline()
            answer = {"pid": pid, "port": int(said) if said else None}
        else:
            answer = {"status": os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
