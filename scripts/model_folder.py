"""Folders of models: whether one can be written there, and one in the place of another, each whole."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from index.durable import sync
from index.errors import ModelError
from index.text.references import ADAPTER_FILE

PARTIAL = ".gaussearch-partial"
"""Within a folder: a model that is being written. It is removed where that fails, and, after a kill, by the next."""


@contextmanager
def whole_model(folder: Path, marks: dict[str, bytes]) -> Iterator[Path]:
    """A folder for the files of a model, which take their places in `folder` after it: until they are on disk, the
    model that is there remains.

    A model does not load without `marks`, contents by their names: no old weights are read with new settings. These are
    removed before files take their places, the last first, and come back after, the last last: interrupted in that
    moment, there is no model. No new folder takes the place of the old: others' files may lie in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / PARTIAL
    if partial.exists():
        shutil.rmtree(partial)
    try:
        partial.mkdir()
        yield partial
        for name, content in marks.items():
            (partial / name).write_bytes(content)
        written = sorted(path.name for path in partial.iterdir())
        for name in written:
            sync(partial / name)
        for name in reversed(marks):
            (folder / name).unlink(missing_ok=True)
        sync(folder)
        for name in written:
            if name not in marks:
                (partial / name).replace(folder / name)
        sync(folder)
        for name in marks:
            (partial / name).replace(folder / name)
            sync(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_writable(folder: Path) -> None:
    """Raises ModelError where no model can be written: not after hours of training. Leaves all as it was."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".gaussearch-"):
            pass
    except OSError as error:
        why = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
        raise ModelError(f"{folder}: no model can be written there: {why}; name another folder") from error
    finally:
        with contextlib.suppress(OSError):
            for each in missing:
                each.rmdir()


def refuse_adapter(folder: Path) -> None:
    """Raises ModelError where a folder holds an adapter: it would be loaded over a model that lies elsewhere."""
    if (folder / ADAPTER_FILE).exists():
        raise ModelError(
            f"{folder}: {ADAPTER_FILE} is there, of an adapter over a model that lies elsewhere; name another folder"
        )
