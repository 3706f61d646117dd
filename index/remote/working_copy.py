"""What a writer knows of an index in storage while it holds the lock of its working copy.

The working copy is brought to what storage has, so that all that writes to a directory finds in it what it would find
in one: the manifests of the generations, their records, what is pinned, and CURRENT.
"""

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from index.current import TOKEN_BYTES, named_by
from index.durable import write_atomically
from index.errors import IndexDirectoryError
from index.generations import MANIFEST_BYTES
from index.layout import MANIFESTS, RECORDS, Folder, Layout, manifest_name, record_name
from index.remote.cache import Lease
from index.remote.fetching import write_whole
from index.remote.objects import ObjectStorage, Version

__all__ = ["CURRENT", "Published", "Writing", "mirror", "pinned_in"]

CURRENT: Final = "CURRENT"
PINNED: Final = "[0-9]" * 8
TAGS: Final = "cached/tags.json"
"""Which objects the manifests and records of the working copy were. Numbers alone do not say: an index that was removed
and built anew has them again."""


@dataclass(frozen=True, slots=True)
class Published:
    """The generations of an index, by the names of objects: `manifests` are all that there are, also of writers that
    have not published theirs, and `records` of those that have been live. `tags` change when an object does."""

    manifests: frozenset[int]
    records: frozenset[int]
    tags: dict[str, str]

    @classmethod
    def of(cls, storage: ObjectStorage) -> "Published":
        """As they are now."""
        listed = storage.list(Folder.MANIFESTS)
        names = [PurePosixPath(each.name).name for each in listed]
        tags = {each.name: each.e_tag for each in listed if each.e_tag is not None}
        return cls(
            frozenset(int(name[:8]) for name in names if _is(name, MANIFESTS)),
            frozenset(int(name[:8]) for name in names if _is(name, RECORDS)),
            tags,
        )

    def kept(self, live: int | None) -> list[int]:
        """The generations that are kept, ascending."""
        # Who died after it had replaced CURRENT has left no record; where that is damaged, any may help.
        kept = (self.manifests & self.records) | ({live} - {None})
        return sorted(number for number in kept if number is not None and number <= (live or number))


@dataclass(slots=True)
class Writing:
    """What CURRENT was when the lock was taken, or this writer has last published; `foreign` are manifests of others
    that had not been published then."""

    token: str | None
    version: Version | None
    foreign: frozenset[int]
    leases: list[Lease] = field(default_factory=list)

    def release(self) -> None:
        """Leaves to the cache what was needed."""
        for lease in self.leases:
            lease.release()


def mirror(layout: Layout, storage: ObjectStorage) -> Writing:
    """Brings a working copy, whose lock the caller holds, to what storage has.

    Raises StorageError, CorruptIndexError for objects that are too large, and OSError.
    """
    current = storage.get(CURRENT, TOKEN_BYTES)
    token = current.data.decode("ascii", "replace") if current is not None else None
    named = named_by(token) if token is not None else None
    published = Published.of(storage)
    kept = published.kept(named.generation if named else None)
    for folder in (layout.manifests, layout.pins):
        folder.mkdir(exist_ok=True)
    tags = _read_tags(layout)
    wanted = {str(manifest_name(number)): MANIFEST_BYTES for number in kept}
    wanted |= {str(record_name(number)): TOKEN_BYTES for number in kept if number in published.records}
    for name, limit in wanted.items():
        if published.tags.get(name, "") != tags.get(name) or not (layout.path / name).is_file():
            _bring(layout, storage, name, limit)
    write_whole(layout.path / TAGS, json.dumps({name: published.tags.get(name) for name in wanted}).encode())
    if named is not None and named.generation not in published.records:
        write_atomically(layout.record_file(named.generation), str(token).encode(), synced=False)
    for pattern in (MANIFESTS, RECORDS):
        for path in layout.manifests.glob(pattern):
            if int(path.stem) not in kept:
                path.unlink()
    _mirror_pins(layout, storage)
    if current is None:
        layout.current_file.unlink(missing_ok=True)
    elif not layout.current_file.is_file() or layout.current_file.read_bytes() != current.data:
        write_atomically(layout.current_file, current.data, synced=False)
    foreign = published.manifests - published.records - {named.generation if named else 0}
    return Writing(token, current.version if current is not None else None, foreign)


def _bring(layout: Layout, storage: ObjectStorage, name: str, limit: int) -> None:
    path = layout.path / name
    path.unlink(missing_ok=True)
    with contextlib.suppress(IndexDirectoryError):
        # One that is damaged must not keep the others from being written to.
        stored = storage.get(name, limit)
        if stored is not None:
            write_atomically(path, stored.data, synced=False)


def _read_tags(layout: Layout) -> dict[str, str | None]:
    """Of what the working copy has, what it was when it was brought."""
    try:
        tags = json.loads((layout.path / TAGS).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return tags if isinstance(tags, dict) else {}


def pinned_in(storage: ObjectStorage) -> set[str]:
    """What the generations are called in storage that are to be kept, now."""
    names = {PurePosixPath(each.name).name for each in storage.list(Folder.PINS)}
    return {name for name in names if _is(name, PINNED)}


def _mirror_pins(layout: Layout, storage: ObjectStorage) -> None:
    pinned = pinned_in(storage)
    for path in layout.pins.glob(PINNED):
        if path.name not in pinned:
            path.unlink()
    for name in pinned:
        (layout.pins / name).touch()


def _is(name: str, pattern: str) -> bool:
    return PurePosixPath(name).match(pattern)
