"""Folders of models that are whole or do not load."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from index.durable import sync, write_atomically


@contextmanager
def loadable_at_the_end(folder: Path, marks: dict[str, bytes]) -> Iterator[None]:
    """Files written inside are a part of a model, which does not load without `marks`, contents by their names: no old
    weights are read with new settings. They are removed before, the last first, and written after, the last last.

    No new folder takes the place of the old: others' files may lie in it. What is written inside is on disk before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in reversed(marks):
        (folder / name).unlink(missing_ok=True)
    sync(folder)
    yield
    for path in folder.iterdir():
        if path.is_file():
            sync(path)
    for name, content in marks.items():
        write_atomically(folder / name, content)
