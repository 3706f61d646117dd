"""Processes that read and write an index in object storage, as a test sees them: tests.remote_worker does the work."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from tests.object_storage import FaultyStorage, Storage

LOOK = 0.01
"""Seconds between looks for what a process has to say."""


@dataclass
class Running:
    """A process that does a task."""

    workers: "Workers"
    pid: int
    result: Path

    def wait(self) -> Any:
        """What it has to say, when it has ended; None where it was killed."""
        status = self.workers.tell({"wait": self.pid})
        assert status in ("0", "-9"), status
        return json.loads(self.result.read_text()) if self.result.exists() else None

    def said(self) -> Any:
        """What it has to say, while it goes on."""
        looking = threading.Event()
        while not self.result.exists():
            assert Path(f"/proc/{self.pid}").exists()
            looking.wait(LOOK)
        return json.loads(self.result.read_text())

    def kill(self) -> Any:
        """As `wait`, after it has been killed."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()


class Workers:
    """The program that forks them."""

    def __init__(self, faulty: FaultyStorage, stdin: IO[str], stdout: IO[str]) -> None:
        self._environment, self._stdin, self._stdout = faulty.environment(), stdin, stdout
        self._count = 0

    @classmethod
    @contextlib.contextmanager
    def open(cls, faulty: FaultyStorage) -> Iterator[Self]:
        program = subprocess.Popen(
            [sys.executable, "-m", "tests.remote_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert program.stdin is not None
        assert program.stdout is not None
        with program, program.stdin, program.stdout:
            yield cls(faulty, program.stdin, program.stdout)

    def start(self, storage: Storage, machine: str, do: str, **task: Any) -> Running:
        """Begins a task on a machine; `environment` adds to its environment."""
        self._count += 1
        result = storage.folder / f"result-{self._count}.json"
        cache = {"GAUSSEARCH_CACHE": str(storage.folder / machine)}
        environment = {**self._environment, **cache, **task.pop("environment", {})}
        asked = {"do": do, "uri": storage.uri, "result": str(result), "environment": environment, **task}
        return Running(self, int(self.tell(asked)), result)

    def tell(self, asked: dict[str, Any]) -> str:
        print(json.dumps(asked), file=self._stdin, flush=True)
        return self._stdout.readline().strip()
