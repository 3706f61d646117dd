"""The generations that lie in an index directory, and the removal of what none of them needs any more.

Only whoever holds the writer lock removes anything. What is not called like something of ours is left alone.
"""

import datetime
import functools
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from index.current import live
from index.errors import CorruptIndexError, UnsupportedFormatError
from index.holding import held, pinned
from index.layout import MANIFESTS, RECORDS, Layout
from index.manifest import FORMAT_VERSION, Manifest
from index.retention import Retention
from index.untrusted import IndexFile, require_few_fields

__all__ = ["MANIFEST_BYTES", "parse_manifest", "remove_unnamed", "remove_unpublished", "tidy"]

MANIFEST_BYTES = 1 << 24
"""More than a manifest that lists fifty thousand segments."""
REMEMBERED = 1024
"""Generations of which it is remembered what they need."""
_SEGMENT = re.compile(r"[0-9a-f]{12}-[0-9]{8}-[0-9]{5}")
# Also one that a killed build had not finished.
_CODEBOOK = re.compile(r"\.?[0-9a-f]{12}-[0-9]{8}-[0-9]{5}\.safetensors(\.tmp)?")
_STRUCTURE = re.compile(r"\.?[0-9a-f]{12}-[0-9]{8}-[0-9]{5}\.(faiss|safetensors)(\.tmp)?")
_DELETES = re.compile(r"\.?[0-9a-f]{12}-[0-9]{8}-[0-9]{5}-[0-9]{8}\.npy(\.tmp)?")
_UNFINISHED = re.compile(r"\.[0-9]{8}(\.json|\.blake3)?\.tmp")


def remove_unpublished(layout: Layout) -> None:
    """Removes the manifests after the live one: those of writers that were killed before they could replace
    CURRENT."""
    number, _ = live(layout)
    for path in layout.manifests.glob(MANIFESTS):
        if number is not None and int(path.stem) > number:
            _forget(path)


@dataclass(frozen=True, slots=True)
class _Generation:
    """Of a manifest, what decides whether it is kept (index.retention), and the names of what it is made of."""

    created: datetime.datetime
    state: object
    segments: frozenset[str]
    codebooks: frozenset[str]
    structures: frozenset[str]
    deletes: frozenset[str]

    @classmethod
    def of(cls, manifest: Manifest) -> "_Generation":
        return cls(
            created=manifest.created,
            state=manifest.state,
            segments=frozenset(entry.id for entry in manifest.segments),
            codebooks=frozenset([manifest.codes.codebook] if manifest.codes is not None else []),
            structures=frozenset([manifest.structure.name] if manifest.structure is not None else []),
            deletes=frozenset(entry.deletes.name for entry in manifest.segments if entry.deletes is not None),
        )


def tidy(layout: Layout, retention: Retention | None) -> None:
    """Removes all generations but those that are kept, which without `retention` are all that have been live, and
    what none of these names."""
    remove_unpublished(layout)
    manifests = {int(path.stem): path for path in layout.manifests.glob(MANIFESTS)}
    readable = {number: _readable(path) for number, path in manifests.items()}
    kept = set(manifests)
    if retention is not None:
        kept = retention.kept(readable, pinned(layout.pins) | held(layout.pins))
    for number, path in manifests.items():
        if number not in kept:
            _forget(path)
    for path in layout.manifests.glob(RECORDS):
        # Of the two names that were removed a power cut can leave either.
        if not path.with_suffix(".json").exists():
            path.unlink()
    for folder in (layout.manifests, layout.pins):
        # What killed writers left beside what they were writing.
        _remove_others(folder, _UNFINISHED, frozenset())
    generations = [generation for number, generation in readable.items() if number in kept and generation]
    if len(generations) < len(kept & manifests.keys()):
        # What an unreadable one needs is not known, and another release may be able to read it.
        return
    _remove_unnamed(layout, generations)


def remove_unnamed(layout: Layout, spare: Callable[[str], bool]) -> None:
    """Removes what no manifest of a directory names, but for what is to be spared, by names such as segments/<id>."""
    readable = [_readable(path) for path in layout.manifests.glob(MANIFESTS)]
    generations = [generation for generation in readable if generation]
    if len(generations) == len(readable):
        _remove_unnamed(layout, generations, spare)


def _remove_unnamed(
    layout: Layout, generations: Collection[_Generation], spare: Callable[[str], bool] = lambda _: False
) -> None:
    _remove_others(layout.codebooks, _CODEBOOK, frozenset().union(*(each.codebooks for each in generations)), spare)
    _remove_others(layout.structures, _STRUCTURE, frozenset().union(*(each.structures for each in generations)), spare)
    _remove_others(layout.deletes, _DELETES, frozenset().union(*(each.deletes for each in generations)), spare)
    needed = frozenset[str]().union(*(each.segments for each in generations))
    for folder in layout.segments.glob("*"):
        # What is not called like a segment is not ours; what cannot be removed now is tried again next time.
        is_ours = _SEGMENT.fullmatch(folder.name) and not spare(f"{layout.segments.name}/{folder.name}")
        if folder.name not in needed and is_ours:
            shutil.rmtree(folder, ignore_errors=True)


def parse_manifest(path: Path | str, data: bytes) -> Manifest:
    """What a manifest says; raises UnsupportedFormatError for another release's, and CorruptIndexError naming the file
    and the field that is wrong."""
    require_few_fields(path, data)
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"]))
        if field == "format_version":
            raise UnsupportedFormatError(
                f"{path} has format version {repr(first['input'])[:40]}; this release reads version {FORMAT_VERSION}: "
                "upgrade gaussearch, or build the index again"
            ) from error
        raise CorruptIndexError(f"{path}: {field}: {first['msg']}") from error


def _forget(manifest: Path) -> None:
    """Removes a generation from those that are kept. First what says that it is one."""
    manifest.with_suffix(".blake3").unlink(missing_ok=True)
    manifest.unlink()


def _remove_others(
    folder: Path, ours: re.Pattern[str], needed: Collection[str], spare: Callable[[str], bool] = lambda _: False
) -> None:
    """Removes the files of a folder that are called like ours and are neither needed nor to be spared."""
    for file in folder.iterdir() if folder.exists() else ():
        if file.name not in needed and ours.fullmatch(file.name) and not spare(f"{folder.name}/{file.name}"):
            file.unlink()


def _readable(path: Path) -> _Generation | None:
    """What is in a manifest's file; None where it is damaged or another release's."""
    try:
        status = path.stat()
        return _read(path, status.st_ino, status.st_mtime_ns, status.st_size)
    except (CorruptIndexError, UnsupportedFormatError, FileNotFoundError):
        return None


@functools.lru_cache(REMEMBERED)
def _read(path: Path, *_: int) -> _Generation:
    """What is in a file that has not been read before: each publication asks for all, and no manifest changes."""
    return _Generation.of(parse_manifest(path, IndexFile(path, folders=1).contents(MANIFEST_BYTES)))
