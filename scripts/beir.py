"""Text corpora in BEIR's form: documents.jsonl or corpus.jsonl, queries.jsonl, qrels/<split>.tsv."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index import Columns, GaussearchError, VarianceAs
from service.trec import Qrels, read_qrels

DOCUMENT_FILES = ("documents.jsonl", "corpus.jsonl")


class BeirError(GaussearchError):
    """A corpus that cannot be read."""

    code = "bad_beir"


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts and their ids, which are unique."""

    ids: list[str]
    texts: list[str]

    def rows(self) -> dict[str, int]:
        """The row of each id."""
        return {identifier: row for row, identifier in enumerate(self.ids)}

    def only(self, ids: Iterable[str]) -> "Texts":
        """Those of some ids, in their order."""
        rows, chosen = self.rows(), list(ids)
        return Texts(chosen, [self.texts[rows[identifier]] for identifier in chosen])


@dataclass(frozen=True, slots=True)
class Beir:
    """A corpus, and what its splits judge relevant."""

    folder: Path
    documents: Texts
    queries: Texts

    @classmethod
    def read(cls, folder: Path) -> "Beir":
        """The corpus of a folder; raises BeirError. A title stands before its text, apart by a space."""
        named = [folder / name for name in DOCUMENT_FILES if (folder / name).is_file()]
        if not named:
            raise BeirError(f"{folder}: it has neither {' nor '.join(DOCUMENT_FILES)}")
        return cls(folder, _texts(named[0]), _texts(folder / "queries.jsonl"))

    def qrels(self, splits: Sequence[str]) -> Qrels:
        """The judgements of all of the splits, all of them of queries and documents that are here.

        Raises BeirError, and EvaluationError where a file cannot be read.
        """
        qrels: Qrels = {}
        queries, documents = self.queries.rows(), self.documents.rows()
        for split in splits:
            path = self._split(split)
            for query, judged in read_qrels(path, Columns(), VarianceAs.VARIANCE, "relevant").items():
                unknown = [each for each in judged if each not in documents]
                if query not in queries or unknown:
                    what = f"document {unknown[0]!r}" if query in queries else f"query {query!r}"
                    raise BeirError(f"{path}: {what} is not in the corpus")
                if query in qrels:
                    raise BeirError(f"{path}: query {query!r} is in another split, too")
                qrels[query] = judged
        return qrels

    def _split(self, split: str) -> Path:
        """Where its judgements are; raises BeirError."""
        path = self.folder / "qrels" / f"{split}.tsv"
        if not path.is_file():
            there = ", ".join(sorted(each.stem for each in path.parent.glob("*.tsv"))) or "none"
            raise BeirError(f"{self.folder}: no qrels/{split}.tsv; there are: {there}")
        return path


def _texts(path: Path) -> Texts:
    ids: list[str] = []
    texts: list[str] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                identifier, text = _row(f"{path} line {number}", line)
                ids.append(identifier)
                texts.append(text)
    except (OSError, UnicodeDecodeError) as error:
        raise BeirError(f"{path} cannot be read: {error}") from error
    if not ids or len(set(ids)) != len(ids):
        raise BeirError(f"{path}: {'an id is there twice' if ids else 'it is empty'}")
    return Texts(ids, texts)


def _row(where: str, line: str) -> tuple[str, str]:
    try:
        row: Any = json.loads(line)
        identifier, title, text = row["_id"], row.get("title") or "", row["text"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BeirError(f"{where}: it must be an object with _id and text: {error!r}") from error
    if not all(isinstance(each, str) for each in (identifier, title, text)):
        raise BeirError(f"{where}: _id, title and text must be strings")
    return identifier, f"{title} {text}" if title else text
