"""What no generation of an index in storage needs any more, removed there.

index.remote.remote_publication says why nothing is removed that a live generation names.
"""

import contextlib
import datetime
import time
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from index.errors import GaussearchError
from index.generations import MANIFEST_BYTES, parse_manifest
from index.holding import held
from index.layout import Folder, manifest_name, record_name
from index.manifest import Manifest
from index.remote.fetching import items_of
from index.remote.working_copy import Published
from index.retention import Retention

if TYPE_CHECKING:
    from index.remote.remote_index import RemoteIndex

__all__ = ["remove_generations", "sweep"]

DEAD_DAYS: Final = 7
"""What no manifest names and has been there for longer is of a writer that has died. It may as well be of a build on
another machine that has not published yet: so it is left for much longer than any build takes. A build that goes on
with segments of its own puts their segment.json anew."""
SWEPT_DAYS: Final = 1
"""All objects are listed so often, and not at each publication: of a large index they are a hundred thousand."""
ITEMS: Final = (Folder.SEGMENTS, Folder.CODEBOOKS, Folder.STRUCTURES, Folder.DELETES, Folder.STAGING)


def remove_generations(index: "RemoteIndex", retention: Retention, foreign: Collection[int]) -> None:
    """Removes the generations that are not kept, what these alone needed, and the manifests of writers that this one
    has overtaken. Hold the lock, after publishing.

    Raises StorageError, and leaves the rest to the next publication.
    """
    storage = index.storage
    if foreign:
        # They were there before CURRENT was replaced: whoever put them can replace it no more.
        storage.delete(*(str(manifest_name(number)) for number in foreign))
    manifests = {number: _readable(index, number) for number in index.generations()}
    kept = retention.kept(manifests, index.pinned() | held(index.pins))
    gone = {number: manifest for number, manifest in manifests.items() if number not in kept}
    for number in list(gone):
        # First what says that it is one: who pins it looks for that when the pin is there.
        storage.delete(str(record_name(number)))
        if number in index.pinned():
            storage.put(str(record_name(number)), index.record_file(number).read_bytes())
            del gone[number]
            continue
        storage.delete(str(manifest_name(number)))
        index.record_file(number).unlink(missing_ok=True)
        index.manifest_file(number).unlink(missing_ok=True)
    candidates = {key for manifest in gone.values() if manifest is not None for key in items_of(manifest)}
    needed = _needed(index, known=manifests)
    if needed is not None:
        unneeded = candidates - needed
        _remove(index, unneeded)
        index.discard_here(unneeded)
    if _is_due(index):
        sweep(index)


def sweep(index: "RemoteIndex") -> None:
    """Removes the objects of dead writers: what no manifest names, and has been there for DEAD_DAYS."""
    latest: dict[str, datetime.datetime] = {}
    for folder in ITEMS:
        for each in index.storage.list(folder):
            key = "/".join(PurePosixPath(each.name).parts[:2])
            latest[key] = max(latest.get(key, each.modified), each.modified)
    oldest = _now(index) - datetime.timedelta(days=DEAD_DAYS)
    dead = {key for key, modified in latest.items() if modified < oldest}
    needed = _needed(index, known={})
    if needed is not None:
        _remove(index, dead - needed, oldest)


def _now(index: "RemoteIndex") -> datetime.datetime:
    """The time, by the clock of storage, which says how old objects are: this machine's may be years ahead. That of the
    last publication, which is the caller's own."""
    return max(
        (each.modified for each in index.storage.list(Folder.MANIFESTS)),
        default=datetime.datetime.fromtimestamp(0, datetime.UTC),
    )


def _is_due(index: "RemoteIndex") -> bool:
    stamp = index.path / "cached" / "swept"
    with contextlib.suppress(FileNotFoundError):
        if time.time() - stamp.stat().st_mtime < SWEPT_DAYS * 86_400:
            return False
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.touch()
    return True


def _needed(index: "RemoteIndex", known: dict[int, Manifest | None]) -> set[str] | None:
    """What the manifests name that there are now, published or not; None where one of them cannot be read: what it
    needs is not known, and another release may be able to read it."""
    needed: set[str] = set()
    for number in Published.of(index.storage).manifests:
        manifest = known.get(number)
        if manifest is None:
            name = str(manifest_name(number))
            try:
                stored = index.storage.get(name, MANIFEST_BYTES)
                if stored is None:
                    continue  # removed just now
                manifest = parse_manifest(index.storage.where(name), stored.data)
            except GaussearchError:
                return None
        needed |= set(items_of(manifest))
    return needed


def _remove(index: "RemoteIndex", keys: Iterable[str], oldest: datetime.datetime | None = None) -> None:
    """Removes what these are made of; of what is dead by its age, nothing of which a part is younger by now."""
    for key in keys:
        listed = index.storage.list(key)
        if oldest is not None and any(each.modified >= oldest for each in listed):
            # Who goes on with a build has just put its segment.json anew.
            continue
        # A segment is whole where there is its segment.json.
        names = sorted((each.name for each in listed), key=lambda name: not name.endswith("/segment.json"))
        index.storage.delete(*(names or [key]))


def _readable(index: "RemoteIndex", number: int) -> Manifest | None:
    try:
        return index.generation(number)
    except GaussearchError:
        return None
