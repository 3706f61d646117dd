"""Publication in object storage: all that a generation is made of is put there, and then CURRENT is replaced, in one
step and only where it is what it was when the writer began.

    the manifest                      where there is none of its number: of two writers that chose it one goes on, and
                                      what is called after its generation is called so by nobody else
    segments and what else is new
    the record of the one before      where its writer has not put it yet
    CURRENT                           where nobody has replaced it: of two writers that came so far one has published
    the record                        says that the generation has been live: so it is known of each on which another
                                      has been published, also by a writer whose own answer was lost

Whoever dies in between has published nothing, or all. What was put by then is nobody's: a manifest without a record is
no generation, and is removed by the next that publishes; the rest after DEAD_DAYS. Until then its number is not taken
again: a request of the dead may still be on its way.

Who removes what old generations alone need first removes their records and manifests, and then looks at all manifests
there are. And who publishes files of an old generation again, to go back to it, puts the manifest that names them and
then looks whether that generation is still there. So one of the two sees the other, and nothing is removed that a live
generation names.
"""

import contextlib
import shutil
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from index.current import TOKEN_BYTES, named_by, token_for
from index.durable import checksum, write_atomically
from index.errors import (
    BuildError,
    CorruptIndexError,
    GaussearchError,
    IndexDirectoryError,
    PublicationConflictError,
)
from index.generation_files import shared_files
from index.layout import Folder, manifest_name, record_name
from index.manifest import Manifest
from index.publication import written
from index.remote.fetching import checksums_of, in_parallel, items_of, segment_key
from index.remote.removal import remove_generations
from index.remote.working_copy import CURRENT
from index.retention import Retention
from index.segment_records import SegmentManifest
from index.segments import SEGMENT_RECORD_BYTES
from index.untrusted import IndexFile

if TYPE_CHECKING:
    from index.remote.remote_index import RemoteIndex

__all__ = ["publish", "put_segment"]


def publish(index: "RemoteIndex", manifest: Manifest, retention: Retention) -> None:
    """Makes a manifest the live generation of an index in storage, and removes what none needs any more. Hold its lock.

    Raises PublicationConflictError where another writer has published since the lock was taken, BuildError where it has
    too many segments, CorruptIndexError where one of its files is neither here nor in storage, or there with other
    content, and StorageError: then CURRENT names the generation before, or this one, and it is not known which where it
    says so.
    """
    storage, writing = index.storage, index.writing()
    data = written(manifest, str(index))
    have, owners = _there(index, manifest)
    if storage.create(str(manifest_name(manifest.generation)), data, index.writer) is None:
        raise _conflict(index, manifest.generation)
    for generation in owners:
        if not storage.exists(str(record_name(generation))):
            raise PublicationConflictError(
                f"generation {generation} of {index} has been removed by another writer meanwhile: run the command "
                "again"
            )
    _put_files(index, manifest, have)
    token = token_for(manifest.generation, data)
    if writing.token is not None:
        _record_before(index, writing.token)
    version = (
        storage.replace(CURRENT, token.encode(), writing.version)
        if writing.version is not None
        else storage.create(CURRENT, token.encode(), index.writer)
    )
    overtaken = version is None
    if overtaken and not _was_live(index, manifest.generation, token):
        raise _conflict(index, manifest.generation, overtaken=True)
    writing.token = token
    if version is not None:
        # Or else the lock is worth nothing any more: what is tried next must fail.
        writing.version = version
    # It is published, whatever comes of the rest; what cannot be done now is done by the next that publishes.
    with contextlib.suppress(OSError, GaussearchError):
        if not overtaken:
            index.storage.put(str(record_name(manifest.generation)), token.encode())
        _keep(index, manifest, data, token)
        index.keep_here(items_of(manifest))
        shutil.rmtree(index.staging, ignore_errors=True)
        if not overtaken:
            remove_generations(index, retention, writing.foreign)


def _record_before(index: "RemoteIndex", before: str) -> None:
    """Says in storage that the generation that is live has been, before another is: its writer may have died in
    between, or may not know that it has published."""
    named = named_by(before)
    if named is not None and not index.storage.exists(str(record_name(named.generation))):
        index.storage.put(str(record_name(named.generation)), before.encode())


def _was_live(index: "RemoteIndex", generation: int, token: str) -> bool:
    """Whether a generation has been published whose writer was told that CURRENT is another: the answer that said so
    was lost, and by the time that it was asked again another had published on top."""
    stored = index.storage.get(str(record_name(generation)), TOKEN_BYTES)
    return stored is not None and stored.data == token.encode()


def _keep(index: "RemoteIndex", manifest: Manifest, data: bytes, token: str) -> None:
    """Says in the working copy that a generation is live."""
    index.keep_manifest(manifest.generation, checksum(data), data)
    write_atomically(index.manifest_file(manifest.generation), data, synced=False)
    write_atomically(index.record_file(manifest.generation), token.encode(), synced=False)
    write_atomically(index.current_file, token.encode(), synced=False)


def _conflict(index: "RemoteIndex", generation: int, *, overtaken: bool = False) -> PublicationConflictError:
    """What a writer is told that another has been before; `overtaken` after it had put its manifest, which is removed:
    CURRENT has said no, so that no request of its own can make it the live one any more."""
    named = None
    with contextlib.suppress(GaussearchError):
        named = named_by(index.storage_token() or "")
        if overtaken and named is not None and named.generation > generation:
            index.storage.delete(str(manifest_name(generation)))
    which = f"generation {named.generation}" if named is not None else f"a generation {generation}"
    return PublicationConflictError(
        f"another writer has published {which} of {index}, or is about to publish another: nothing of this one's has "
        "been; run the command again"
    )


def _put_files(index: "RemoteIndex", manifest: Manifest, have: Collection[str]) -> None:
    """Puts what a generation is made of, but for what storage has."""
    for entry in manifest.segments:
        if segment_key(entry) not in have and not index.storage_has(entry):
            put_segment(index, index.segments / entry.id, entry.blake3)
    shared = [path.as_posix() for path in shared_files(manifest) if path.as_posix() not in have]
    in_parallel([partial(index.storage.put, name, index.path / name) for name in shared])


def _there(index: "RemoteIndex", manifest: Manifest) -> tuple[set[str], set[int]]:
    """What of a generation is in storage, because a generation that is kept has it; and which ones, beside the live
    one, have what that has not."""
    wanted, have, owners = checksums_of(manifest), set[str](), set[int]()
    live = index.live_generation()
    for number in sorted(index.generations(), key=lambda each: each != live):
        if wanted.keys() <= have:
            break
        with contextlib.suppress(IndexDirectoryError):
            theirs = checksums_of(index.generation(number))
            for key in (wanted.keys() & theirs.keys()) - have:
                if theirs[key] != wanted[key]:
                    raise BuildError(f"{index}/{key} is there already, with other content: write to another location")
                if number != live:
                    owners.add(number)
                have.add(key)
    return have, owners


def put_segment(index: "RemoteIndex", folder: Path, blake3: str | None = None) -> None:
    """Puts a complete segment, which lies in a folder of its name: segment.json last, so that one that is there stands
    for the whole.

    Raises CorruptIndexError where it is not complete, or not that of this checksum.
    """
    data = IndexFile(folder / "segment.json").contents(SEGMENT_RECORD_BYTES)
    if blake3 is not None and checksum(data) != blake3:
        raise CorruptIndexError(f"{folder / 'segment.json'} does not match its checksum in the index's manifest")
    try:
        listed = SegmentManifest.model_validate_json(data).files
    except ValueError as error:
        raise CorruptIndexError(f"{folder / 'segment.json'} is no record of a segment: {error}") from error
    for name, its in listed.items():
        with IndexFile(folder / name, its).open():
            pass  # of the size that it should have
    target = f"{Folder.SEGMENTS}/{folder.name}"
    in_parallel([partial(index.storage.put, f"{target}/{name}", folder / name) for name in listed])
    index.storage.put(f"{target}/segment.json", data)
