"""What happens to a process at one moment of its work: for programs that try one moment after another, in forks.

A moment is just before anything is changed in the file system: a file opened for writing, a file or a folder synced,
something renamed or removed, a folder made. How it is struck there:

kill       SIGKILL
torn       SIGKILL, and half of the file that is being synced is missing
unsynced   a power cut: SIGKILL, and of every file that was not synced half is missing
lost       a power cut: SIGKILL, and there is nothing but the contents and the names that have been synced
terminate  SIGTERM
interrupt  KeyboardInterrupt
full       files can grow no further than to MOMENT - 1 bytes
EIO        what is done then fails with that error, once; writing bytes and taking room for them are moments, too
ENOSPC     the same, but for what is removed
dead       this and all that follows fails with EIO
"""

import errno
import io
import json
import multiprocessing
import os
import resource
import signal
import stat
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import index.build_encoding
import index.durable
from tests.power_cuts import Disk

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
REMOVALS = {"os.remove", "os.rmdir"}
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "dead": errno.EIO}
POWER_CUTS = ("unsynced", "lost")


def in_a_fork(work: Callable[[], Any]) -> Any:
    """What `work` returns in a process of its own, through JSON; None where that process died of it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            os.write(writer, json.dumps(work()).encode())
        except BaseException as error:  # noqa: BLE001 (interruptions are what is reported)
            os.write(writer, json.dumps({"error": type(error).__name__, "message": str(error)}).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer) if answer else None


class Fault:
    """What is to happen to this process: `struck` says whether it has."""

    def __init__(self, how: str, moment: int, folder: Path | None = None) -> None:
        """Begins to count moments. `folder` is what a power cut damages; what is there already is on the disk."""
        self.how, self.moment, self.passed, self.struck = how, moment, 0, False
        self._sync, self._watching = os.fsync, True
        self._synced = {path.stat().st_ino for path in folder.rglob("*")} if folder is not None else set[int]()
        self._disk = Disk(folder) if folder is not None and how in POWER_CUTS else None
        os.fsync = self._fsync  # type: ignore[assignment]
        if how in ERRORS:
            self._have_writes_fail()
        sys.addaudithook(self._on_event)

    def cut_power(self) -> None:
        """Damages what a power cut does, without ending the process."""
        self._watching = False
        if self._disk is not None:
            self._disk.cut(lost=self.how == "lost")

    def _pass(self) -> None:
        self.passed += 1
        if self.passed != self.moment and not (self.how == "dead" and self.struck):
            return
        self.struck = True
        if self.how in ERRORS:
            raise OSError(ERRORS[self.how], os.strerror(ERRORS[self.how]))
        if self.how == "interrupt":
            raise KeyboardInterrupt
        self.cut_power()
        os.kill(os.getpid(), signal.SIGTERM if self.how == "terminate" else signal.SIGKILL)

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching or self.how == "torn" or (self.how == "ENOSPC" and event in REMOVALS):
            return
        if event in CHANGES or (event == "open" and _writes(arguments[2])):
            try:
                self._pass()
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(arguments[0])) from None

    def _fsync(self, descriptor: int) -> None:
        if not self._watching:
            return self._sync(descriptor)
        file = os.fstat(descriptor)
        if self.how == "torn":
            # What has been synced before is whole, so that only the first time is a moment at which it can be torn.
            if not stat.S_ISREG(file.st_mode) or file.st_ino in self._synced:
                return self._sync(descriptor)
            if self.passed + 1 == self.moment:
                os.truncate(f"/proc/self/fd/{descriptor}", file.st_size // 2)
        self._pass()
        self._synced.add(file.st_ino)
        self._sync(descriptor)
        if self._disk is not None:
            self._watching = False
            self._disk.synced(descriptor)
            self._watching = True
        return None

    def _have_writes_fail(self) -> None:
        opened, take_room = io.open, os.posix_fallocate

        class Raw(io.FileIO):
            def write(raw, data: Any) -> int:  # noqa: N805
                self._pass()
                return super().write(data)

        def open_failing(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
            if "b" not in mode or not set(mode) & set("wax+"):
                return opened(file, mode, buffering, *rest, **options)
            raw = Raw(file, mode.replace("b", ""))
            if buffering == 0:
                return raw
            return (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)

        def take_room_or_fail(*arguments: int) -> None:
            self._pass()
            take_room(*arguments)

        io.open, os.posix_fallocate = open_failing, take_room_or_fail


def _writes(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


class Beside:
    """A process beside this one that answers questions: a fork is slow to begin with."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self._ours, theirs = multiprocessing.Pipe()

        def work() -> None:
            self._ours.close()  # so that this process ends when the one that asks has been killed
            while True:
                try:
                    asked = theirs.recv()
                except EOFError:
                    return
                try:
                    theirs.send(answer(asked))
                except Exception as error:  # noqa: BLE001 (it is what is reported)
                    theirs.send({"error": f"{type(error).__name__}: {error}"})

        multiprocessing.get_context("fork").Process(target=work, daemon=True).start()

    def ask(self, question: Any) -> Any:
        """The answer, or {"error": ...}."""
        self._ours.send(question)
        return self._ours.recv()


def arm(how: str, moment: int, folder: Path | None = None) -> Fault | None:
    """Has this process struck at that moment; None where it is struck by the system, as of a full disk."""
    if how == "full":
        # Python ignores SIGXFSZ, so that a write beyond the limit fails as one to a full disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (moment - 1, resource.RLIM_INFINITY))
        return None
    return Fault(how, moment, folder)


class _Inline:
    """An executor that does everything at once. What interrupts it interrupts its caller."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done = Future[Any]()
        try:
            done.set_result(work(*arguments))
        except Exception as error:  # noqa: BLE001 (it is told by the future)
            done.set_exception(error)
        return done

    def shutdown(self, **_: object) -> None:
        pass


def one_after_the_other() -> None:
    """Has nothing done beside something else, so that a moment is the same at every try."""
    index.build_encoding.available_cores = lambda: 1  # type: ignore[attr-defined]
    index.build_encoding.SEGMENTS_WAITING = 0
    index.durable.ThreadPoolExecutor = _Inline  # type: ignore[attr-defined,assignment]
