"""The cache of this machine: what its processes have fetched of indexes in object storage, within a bound.

cache/
  indexes/<name>-<digest>/             a working copy: the directory of an index, of which files may be missing
    cached/<folder>/<name>             says that storage has this segment or file, how many bytes it takes here, and, by
                                       its time, when it was last asked for; whether it has come
    cached/manifests/                  manifests that were read, by their checksums
    locks/<folder>/<name>.lock         held by who fetches it
  leases/<any>.held, .json             held as long as somebody uses what the other lists
  .lock                                held for a moment, by who takes a lease or makes room

A mark in cached/ is made before the first byte of what it stands for is fetched: so the bound is kept by all processes
together. Of what has no mark, which is a build's that has not been published, nothing is ever removed here.
"""

import json
import os
import secrets
import shutil
import weakref
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from filelock import FileLock, Timeout

from index.errors import InsufficientCacheError, InvalidOptionError

__all__ = ["DEFAULT_SHARE", "Cache", "CacheOptions", "Lease", "part_of"]

DEFAULT_SHARE: Final = 0.8
"""Of what the disk has free, and the cache already: the bound where none is set. The rest is for what is being built
and written there, and for everybody else."""
THERE: Final = " there"
"""Ends the mark of what has come."""
FOLDER_VARIABLE, BYTES_VARIABLE = "GAUSSEARCH_CACHE", "GAUSSEARCH_CACHE_BYTES"


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """Where the cache lies, and how many bytes it may have; None is as the environment says, or else the default."""

    folder: Path | None = None
    bytes: int | None = None

    def resolved(self) -> Self:
        """With what the environment says; raises InvalidOptionError where that is no number."""
        folder = self.folder or Path(os.environ.get(FOLDER_VARIABLE) or _default_folder())
        limit, said = self.bytes, os.environ.get(BYTES_VARIABLE)
        if limit is None and said:
            if not said.isdecimal() or not int(said):
                raise InvalidOptionError(f"{BYTES_VARIABLE} is {said!r}: give a number of bytes, at least 1")
            limit = int(said)
        return type(self)(folder.expanduser().absolute(), limit)


def _default_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base, "gaussearch")


def part_of(path: Path) -> Path:
    """What a file is called until all of it has come."""
    return path.with_name(f".{path.name}.part")


class Lease:
    """What the cache must not remove, as long as this is kept or its process lives."""

    def __init__(self, lock: FileLock, listed: Path) -> None:
        self._release = weakref.finalize(self, _release, lock, listed)

    def release(self) -> None:
        """Leaves it to the cache again."""
        self._release()


def _release(lock: FileLock, listed: Path) -> None:
    listed.unlink(missing_ok=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


class Cache:
    """The cache in a folder. Making one touches nothing. Safe for several threads and processes."""

    def __init__(self, options: CacheOptions | None = None) -> None:
        options = (options or CacheOptions()).resolved()
        self.folder, self._limit = options.folder or Path(), options.bytes
        self._indexes, self._leases = self.folder / "indexes", self.folder / "leases"

    def index_folder(self, key: str) -> Path:
        """Where the working copy of an index lies."""
        return self._indexes / key

    def lease(self, index: str, items: Mapping[str, int], *, there: bool = False) -> Lease:
        """Keeps these of an index (segments/<id> or <folder>/<file>, and how many bytes each has), whether they are
        there or are to be fetched, and removes what has not been asked for longest where there is no room for them.

        `there` says that they have been made here: they are kept even where there is no room. Raises
        InsufficientCacheError where what is to be fetched does not fit beside what is in use.
        """
        self.make()
        with FileLock(self.folder / ".lock"):
            marks = dict(self._marks())
            new = {key: size for key, size in items.items() if (index, key) not in marks}
            self._make_room(marks, {(index, key) for key in items}, sum(new.values()), forced=there)
            lease = self._listed(index, list(items))
            for key, size in items.items():
                mark = self._mark(index, key)
                if key in new:
                    mark.parent.mkdir(parents=True, exist_ok=True)
                    mark.write_text(f"{size}{THERE if there else ''}", encoding="ascii")
                else:
                    os.utime(mark)
            return lease

    def arrived(self, index: str, items: Mapping[str, int]) -> None:
        """Says that items have come of which the caller has a lease."""
        with FileLock(self.folder / ".lock"):
            # Who looks how much there is must not find a mark half-written.
            for key, size in items.items():
                self._mark(index, key).write_text(f"{size}{THERE}", encoding="ascii")

    def forget(self, index: str, key: str) -> None:
        """Removes one item, in use or not: it is damaged."""
        # Not beneath who is fetching it again.
        with self.fetch_lock(index, key), FileLock(self.folder / ".lock"):
            self._remove(index, key)

    def discard(self, index: str, keys: Collection[str]) -> None:
        """Removes items that nobody will ask for again, unless they are in use."""
        if not self.folder.is_dir():
            return
        with FileLock(self.folder / ".lock"):
            busy = self._leased()
            for key in keys:
                if (index, key) not in busy:
                    self._remove(index, key)

    def is_marked(self, index: str, key: str) -> bool:
        """Whether it is known to be in storage, and so the cache's own."""
        return self._mark(index, key).exists()

    def fetch_lock(self, index: str, key: str) -> FileLock:
        """Held by who fetches an item, of which there is a lease."""
        path = self._lock(index, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)

    def used(self) -> int:
        """Bytes that are fetched, or being fetched."""
        return sum(mark.bytes for _, mark in self._marks())

    def _make_room(
        self, marks: "dict[tuple[str, str], _Mark]", wanted: set[tuple[str, str]], new: int, *, forced: bool
    ) -> None:
        """Removes what has not been asked for longest until there is room for so many bytes more."""
        used = sum(mark.bytes for mark in marks.values())
        limit = self._limit_beside(sum(mark.bytes for mark in marks.values() if mark.there))
        if used + new <= limit:
            return
        busy = wanted | self._leased()
        idle = sorted((mark.used, its) for its, mark in marks.items() if its not in busy)
        least = used - sum(marks[its].bytes for _, its in idle) + new
        if least > limit and new and not forced:
            raise InsufficientCacheError(
                f"the cache {self.folder} would need {least:,} bytes, for {new:,} that are to be fetched and for what "
                f"is in use, and may have {limit:,}: allow it more (--cache-bytes or {BYTES_VARIABLE}), or name a "
                f"folder on a larger disk (--cache or {FOLDER_VARIABLE})"
            )
        for _, (index, key) in idle:
            if used + new <= limit:
                return
            self._remove(index, key)
            used -= marks[index, key].bytes

    def _limit_beside(self, there: int) -> int:
        """The bound, where so many bytes have come: what is still on its way the disk has free."""
        if self._limit is not None:
            return self._limit
        return int(DEFAULT_SHARE * (shutil.disk_usage(self.folder).free + there))

    def make(self) -> None:
        """Makes its folders, before anything is written to it: what is in it may be nobody else's to read."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for folder in (self._indexes, self._leases):
            folder.mkdir(exist_ok=True)

    def _marks(self) -> "Iterator[tuple[tuple[str, str], _Mark]]":
        for path in self._indexes.glob("*/cached/*/*"):
            if path.parent.name == "manifests":
                continue
            try:
                said, used = path.read_text(encoding="ascii"), path.stat().st_mtime_ns
                mark = _Mark(int(said.removesuffix(THERE) or 0), used, said.endswith(THERE))
            except (FileNotFoundError, ValueError):
                continue
            yield (path.parts[-4], f"{path.parent.name}/{path.name}"), mark

    def _listed(self, index: str, keys: list[str]) -> Lease:
        path = self._leases / f"{secrets.token_hex(8)}.held"
        lock = FileLock(path, thread_local=False)
        lock.acquire()
        listed = path.with_suffix(".json")
        listed.write_text(json.dumps([[index, key] for key in keys]), encoding="utf-8")
        return Lease(lock, listed)

    def _leased(self) -> set[tuple[str, str]]:
        """What is in use. What dead processes have left is removed."""
        found: set[tuple[str, str]] = set()
        for path in self._leases.glob("*.held"):
            listed = path.with_suffix(".json")
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                try:
                    found |= {(index, key) for index, key in json.loads(listed.read_text(encoding="utf-8"))}
                except FileNotFoundError:
                    continue  # just released
            else:
                _release(lock, listed)
        return found

    def _remove(self, index: str, key: str) -> None:
        target = self.index_folder(index) / key
        if target.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        else:
            for path in (target, part_of(target)):
                path.unlink(missing_ok=True)
        # Last: what a killed process leaves is still known to be here.
        self._lock(index, key).unlink(missing_ok=True)
        self._mark(index, key).unlink(missing_ok=True)

    def _mark(self, index: str, key: str) -> Path:
        return self.index_folder(index) / "cached" / key

    def _lock(self, index: str, key: str) -> Path:
        return self.index_folder(index) / "locks" / f"{key}.lock"


@dataclass(frozen=True, slots=True)
class _Mark:
    bytes: int
    used: int
    there: bool
