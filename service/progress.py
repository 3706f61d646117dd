"""How a build shows that it gets on: a bar on a terminal, a plain line every few seconds anywhere else."""

import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["LineProgress", "TerminalProgress", "progress_for"]

LINE_SECONDS = 5.0


def progress_for(console: Console) -> "TerminalProgress | LineProgress":
    """A bar where the console is a terminal, lines where it is not."""
    return TerminalProgress(console) if console.is_terminal else LineProgress(console)


class TerminalProgress:
    """A rich progress bar: documents, documents per second and time left."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> "TerminalProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def phase(self, name: str, total: int | None) -> None:
        """A new line under the finished ones."""
        if self._task is not None:
            done = self._bar.tasks[self._task].completed
            self._bar.update(self._task, total=done or 1, completed=done or 1)
        self._task = self._bar.add_task(name, total=total, rate="")

    def advance(self, documents: int) -> None:
        """Moves the bar."""
        if self._task is None:
            return
        self._bar.advance(self._task, documents)
        task = self._bar.tasks[self._task]
        self._bar.update(self._task, rate=f"{task.completed / max(task.elapsed or 0.0, 1e-3):,.0f} docs/s")


class LineProgress:
    """Plain lines for logs: one at each phase's start, then one every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._name = ""
        self._total: int | None = None
        self._done = 0
        self._started = self._said = time.monotonic()
        self._turn = threading.Lock()

    def __enter__(self) -> "LineProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return

    def phase(self, name: str, total: int | None) -> None:
        """Says which phase begins."""
        self._name, self._total, self._done = name, total, 0
        self._started = self._said = time.monotonic()
        self._console.print(name if total is None else f"{name} {total:,} documents", highlight=False)

    def advance(self, documents: int) -> None:
        """Says how far it is, if it has not for a while."""
        with self._turn:
            self._advance(documents)

    def _advance(self, documents: int) -> None:
        self._done += documents
        now = time.monotonic()
        if now - self._said < LINE_SECONDS:
            return
        self._said = now
        rate = self._done / (now - self._started)
        line = f"{self._name}: {self._done:,} documents, {rate:,.0f} docs/s"
        if self._total is not None:
            line += f", {(self._total - self._done) / rate:,.0f} s left"
        self._console.print(line, highlight=False)
