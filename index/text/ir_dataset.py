"""Texts of ir_datasets, where its data are on this machine: nothing is fetched."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import zstandard

from index.errors import SourceError
from index.text.protocol import Role

__all__ = ["PREFIX", "export_texts"]

PREFIX: Final = "ir_datasets:"


def export_texts(name: str, role: Role, path: Path) -> int:
    """Writes the documents or queries of a data set to a file, as JSON Lines in zstd; how many there are.

    Raises SourceError where there is no such data set, or its data are not here.
    """
    try:
        import ir_datasets
    except ImportError as error:
        raise SourceError(f"{PREFIX}{name}: ir_datasets is not installed: pip install ir-datasets") from error
    kind, count = "docs" if role is Role.DOCUMENT else "queries", 0
    # Around all of it: loading some data sets, or asking what they have, fetches, too.
    with path.open("wb") as file, _offline(name):
        try:
            dataset = ir_datasets.load(name)
        except KeyError as error:
            raise SourceError(f"{PREFIX}{name}: ir_datasets knows no data set of this name") from error
        if not getattr(dataset, f"has_{kind}")():
            raise SourceError(f"{PREFIX}{name}: it has no {kind}")
        with zstandard.ZstdCompressor().stream_writer(file) as stream:
            for record in getattr(dataset, f"{kind}_iter")():
                line = {"_id": record[0], "text": record.default_text()}
                stream.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
                count += 1
    return count


@contextlib.contextmanager
def _offline(name: str) -> Iterator[None]:
    """Has ir_datasets refuse to fetch what is not here: it has no such setting."""
    from ir_datasets.util import download

    missing = SourceError(
        f"{PREFIX}{name}: its data are not on this machine; have ir_datasets fetch them first (ir_datasets export)"
    )

    def refuse(*_: object, **__: object) -> Any:
        raise missing

    # Every way to fetch is a class of that module, but the one that looks for a file that people fetch themselves.
    ways = [way for way in vars(download).values() if isinstance(way, type) and issubclass(way, download.BaseDownload)]
    with contextlib.ExitStack() as stack:
        for way in ways:
            for method in ("stream", "__iter__"):
                if method in vars(way) and way is not download.LocalDownload:
                    stack.enter_context(_replaced(way, method, refuse))
        try:
            yield
        except FileNotFoundError as error:
            # What only people can fetch, with a licence, say.
            raise missing from error
        except RuntimeError as error:
            # It tries one mirror after the other, and says of what each answered.
            if str(missing) in str(error):
                raise missing from error
            raise


@contextlib.contextmanager
def _replaced(owner: type, name: str, value: object) -> Iterator[None]:
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
