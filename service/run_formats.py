"""How the results of searches are printed: tables for people, JSON Lines, and TREC's run files."""

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, TextIO

from rich.table import Table

from index import GaussearchError
from service.plain_console import PlainConsole
from service.runs import Result

__all__ = ["RunFormat", "RunWriter", "UnwritableIdError"]

TITLE_WIDTH = 30
"""Letters of a title that a table shows."""


class RunFormat(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSONL = "jsonl"
    TREC = "trec"


class UnwritableIdError(GaussearchError):
    """An id that the format asked for cannot hold."""

    code = "unwritable_id"


class RunWriter:
    """Prints results in one of the formats as they come."""

    def __init__(self, form: RunFormat, stream: TextIO) -> None:
        self._form = form
        self._stream = stream

    def write(self, query_id: str, text: str | None, results: Sequence[Result]) -> None:
        """Prints one query's results. Raises UnwritableIdError for an id that a TREC run cannot hold."""
        if self._form is RunFormat.TABLE:
            self._write_table(query_id, text, results)
        elif self._form is RunFormat.JSONL:
            documents = [{"id": r.id, "score": r.score, "payload": r.payload} for r in results]
            self._stream.write(json.dumps({"query": query_id, "results": documents}, default=str) + "\n")
        else:
            for rank, result in enumerate(results, start=1):
                for identifier in (query_id, result.id):
                    if len(identifier.split()) != 1:
                        raise UnwritableIdError(
                            f"id {identifier!r} has white space; TREC runs cannot hold it: use jsonl"
                        )
                self._stream.write(f"{query_id} Q0 {result.id} {rank} {result.score!r} gaussearch\n")

    def _write_table(self, query_id: str, text: str | None, results: Sequence[Result]) -> None:
        table = Table(title=f"{query_id}: {text}" if text else query_id, title_justify="left")
        table.add_column("rank", justify="right")
        table.add_column("id", no_wrap=True)
        table.add_column("-KL", justify="right", no_wrap=True)
        titles = [_title(result.payload) for result in results]
        if any(titles):
            table.add_column("title", no_wrap=True, overflow="ellipsis", max_width=TITLE_WIDTH)
        table.add_column("payload")
        for rank, (result, title) in enumerate(zip(results, titles, strict=True), start=1):
            cells = [str(rank), result.id, f"{result.score:.4f}", *([title] if any(titles) else [])]
            table.add_row(*cells, _shown(result.payload, title))
        PlainConsole(self._stream).print(table)


def _title(payload: dict[str, Any]) -> str:
    """The title of a document, on one line; empty where it has none."""
    title = payload.get("title")
    return " ".join(title.split()) if isinstance(title, str) else ""


def _shown(payload: dict[str, Any], title: str) -> str:
    """What a table shows of a document beside its title: its text, or else its other columns."""
    others = {name: value for name, value in payload.items() if name != "title"} if title else payload
    return str(others.get("text") or json.dumps(others, default=str)) if others else ""
