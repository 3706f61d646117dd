"""Publication: what has been written becomes the live generation, in one step.

The files and folders of the segments are synced, then the manifest is written and synced, then CURRENT is replaced and
synced. Whatever is interrupted, CURRENT names a whole generation. What no generation needs any more is removed when
that is done.
"""

import contextlib
import shutil
from collections.abc import Collection

from index.current import make_current, token_for
from index.durable import sync, write_atomically
from index.errors import BuildError
from index.generations import MANIFEST_BYTES, remove_unpublished, tidy
from index.layout import Layout
from index.manifest import Manifest
from index.retention import Retention

__all__ = ["publish", "written"]


def publish(layout: Layout, manifest: Manifest, *, retention: Retention, published: Collection[str]) -> None:
    """Makes a manifest, whose segments are in place, the live generation, and removes what none needs any more. Hold
    the writer lock.

    `published` are the ids of segments that an earlier generation has had synced. An unfinished build that is overtaken
    by this loses its segments, and begins anew. Raises NotSyncedError where it is live and may not be after a power
    cut, BuildError where it has too many segments, and OSError.
    """
    layout.manifests.mkdir(exist_ok=True)
    remove_unpublished(layout)
    _sync_files(layout, manifest, published)
    data = written(manifest, str(layout.path))
    token = token_for(manifest.generation, data)
    write_atomically(layout.manifest_file(manifest.generation), data)
    write_atomically(layout.record_file(manifest.generation), token.encode())
    make_current(layout, manifest.generation, token)
    with contextlib.suppress(OSError):
        # It is published, whatever comes of this; what cannot be removed now is tried again next time.
        shutil.rmtree(layout.staging, ignore_errors=True)
        tidy(layout, retention)


def _sync_files(layout: Layout, manifest: Manifest, published: Collection[str]) -> None:
    """Has all that a manifest names on disk, but for segments that are known to be."""
    # Of resumed segments too: the run that made them may have been killed before it synced them.
    for folder in (layout.segments / entry.id for entry in manifest.segments if entry.id not in published):
        for path in (*folder.iterdir(), folder):
            sync(path)
    sync(layout.segments)
    if manifest.codes is not None:
        sync(layout.codebooks)
    if manifest.structure is not None:
        sync(layout.structures)
    sync(layout.path)


def written(manifest: Manifest, where: str) -> bytes:
    """A manifest as its file has it; raises BuildError where it has too many segments."""
    # Without a model it is what it was before there were any: releases of that time read it.
    left_out = {"settings": {"model"}} if manifest.model is None else None
    data = (manifest.model_dump_json(indent=2, exclude=left_out) + "\n").encode()
    if len(data) > MANIFEST_BYTES:
        raise BuildError(
            f"the manifest of {where} would have {len(data)} bytes, and may have {MANIFEST_BYTES}: "
            "build with a larger --segment-docs, or from fewer files"
        )
    return data
