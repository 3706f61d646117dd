"""Relevance judgements (qrels) and runs in TREC's formats, read strictly: an error names the file, the line and why.

Fields are apart by white space of ASCII, as in trec_eval: an id may hold any other character.
"""

import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from index import Columns, Corpus, GaussearchError, VarianceAs
from index.durable import naming, write_where_told
from index.formats import is_known
from index.rows import place
from service.run_formats import RunFormat, RunWriter
from service.runs import Result

__all__ = ["RELEVANCE_LIMIT", "EvaluationError", "Qrels", "Run", "read_qrels", "read_run", "write_run"]

Qrels = dict[str, dict[str, int]]
"""The relevance of documents, by query and document: relevant above 0."""

Run = dict[str, dict[str, float]]
"""The scores of documents, by query and document."""

RELEVANCE_LIMIT: Final = 1000
"""trec_eval holds an array as long as the highest relevance."""

_BEIR_HEADER: Final = [b"query-id", b"corpus-id", b"score"]
_SHOWN: Final = 60


class EvaluationError(GaussearchError):
    """Judgements, a run or a measure that cannot be evaluated."""

    code = "evaluation_failed"


def read_qrels(path: Path, columns: Columns, variance_as: VarianceAs, relevant_column: str) -> Qrels:
    """The judgements of a file in TREC's form (query 0 document relevance) or BEIR's (tab-separated, with its header).

    A file of query Gaussians is read, too: its column `relevant_column` holds the id of a query's relevant document,
    or a list of such. Raises EvaluationError, and SourceError where the Gaussians cannot be read.
    """
    qrels = _column_qrels(path, columns, variance_as, relevant_column) if is_known(path) else _text_qrels(path)
    if not any(qrels.values()):
        raise EvaluationError(f"{path} holds no judgements: each line is query 0 document relevance")
    return qrels


def read_run(path: Path) -> Run:
    """The results of a TREC run (query Q0 document rank score tag); raises EvaluationError."""
    run: Run = {}
    for where, line in _lines(path):
        fields = line.split()
        if len(fields) != 6:
            raise EvaluationError(
                f"{where}: it has {len(fields)} fields; a TREC run has 6, query Q0 document rank score tag"
            )
        query, document, rank, score = (_text(fields[place], where) for place in (0, 2, 3, 4))
        if not re.fullmatch(r"[+-]?[0-9]+", rank):
            raise EvaluationError(f"{where}: rank {_shown(rank)} is no whole number")
        documents = run.setdefault(query, {})
        if document in documents:
            raise EvaluationError(
                f"{where}: document {document!r} is found twice for query {query!r}; keep one of them"
            )
        documents[document] = _score(score, where)
    if not run:
        raise EvaluationError(f"{path} holds no results: each line is query Q0 document rank score tag")
    return run


def write_run(path: Path, run: Run) -> None:
    """Writes a TREC run, whole or not at all; raises UnwritableIdError for an id that one cannot hold."""
    text = io.StringIO()
    writer = RunWriter(RunFormat.TREC, text)
    for query, documents in run.items():
        writer.write(query, None, [Result(document, score, {}) for document, score in documents.items()])
    write_where_told(path, text.getvalue().encode())


def _text_qrels(path: Path) -> Qrels:
    qrels: Qrels = {}
    beir = False
    for number, (where, line) in enumerate(_lines(path)):
        if number == 0 and [field.strip() for field in line.split(b"\t")] == _BEIR_HEADER:
            beir = True
            continue
        if beir:
            fields = [field.strip() for field in line.split(b"\t")]
            form = "3 fields, apart by tabs: query-id, corpus-id and score"
        else:
            fields = line.split()
            form = "4 fields, query 0 document relevance, or a header of BEIR, query-id corpus-id score, apart by tabs"
        if len(fields) != (3 if beir else 4) or not all(fields):
            raise EvaluationError(f"{where}: it has {sum(map(bool, fields))} fields; judgements have {form}")
        query, document, relevance = (_text(fields[place], where) for place in ((0, 1, 2) if beir else (0, 2, 3)))
        _judge(qrels, where, query, document, _relevance(relevance, where))
    return qrels


def _column_qrels(path: Path, columns: Columns, variance_as: VarianceAs, relevant_column: str) -> Qrels:
    qrels: Qrels = {}
    for batch in Corpus([path], columns=columns, variance_as=variance_as).batches():
        if batch.payload is None or relevant_column not in batch.payload.schema.names:
            raise EvaluationError(
                f"{path} has no column {relevant_column!r} of relevant documents: name it by --relevant-column, or "
                "give --qrels a TREC or BEIR file"
            )
        values = batch.payload[relevant_column].to_pylist()
        for row, query, value in zip(batch.rows.tolist(), batch.ids.to_pylist(), values, strict=True):
            where = place(path, row)
            if query in qrels:
                raise EvaluationError(f"{where}: query {query!r} is there twice; ids of queries must be unique")
            qrels[query] = {}
            for document in value if isinstance(value, list) else [] if value is None else [value]:
                if isinstance(document, bool) or not isinstance(document, str | int):
                    raise EvaluationError(
                        f"{where}: {relevant_column} is {_shown(str(value))}; it must be the id of a document or a "
                        "list of ids"
                    )
                _judge(qrels, where, query, str(document), 1)
    return qrels


def _judge(qrels: Qrels, where: str, query: str, document: str, relevance: int) -> None:
    judged = qrels.setdefault(query, {})
    if document in judged:
        raise EvaluationError(f"{where}: document {document!r} is judged twice for query {query!r}; keep one of them")
    judged[document] = relevance


def _relevance(text: str, where: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", text) or abs(int(text)) > RELEVANCE_LIMIT:
        raise EvaluationError(
            f"{where}: relevance {_shown(text)} is no whole number from -{RELEVANCE_LIMIT} to {RELEVANCE_LIMIT}"
        )
    return int(text)


def _score(text: str, where: str) -> float:
    try:
        # Python's own numbers may have underscores and digits of any script.
        score = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise EvaluationError(f"{where}: score {_shown(text)} is no finite number")
    return score


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Where each line is, and its bytes; those of white space alone are left out."""
    try:
        with naming(path), path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield f"{path} line {number}", line.rstrip(b"\r\n")
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}") from error


def _text(field: bytes, where: str) -> str:
    try:
        return field.decode()
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{where}: it is not UTF-8: {error}") from error


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
