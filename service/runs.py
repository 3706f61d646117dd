"""Searches from the command line: queries out of a file, against a directory or a running service."""

import dataclasses
import functools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
from pydantic import ValidationError

from index import Columns, Corpus, GaussearchError, Gaussians, IndexDirectory, LocalSearcher, VarianceAs
from index.errors import ModelError
from index.records import ModelRecord
from index.text import Role
from index.text.matching import require_model
from index.text.rows import TextSource
from service.tls import client_context

__all__ = [
    "BATCH_QUERIES",
    "Asked",
    "LocalRunner",
    "QueryBatch",
    "RemoteRunner",
    "Result",
    "Runner",
    "in_words",
    "read_queries",
    "search_batch",
]

BATCH_QUERIES = 128
TEXTS_TOGETHER = 32
"""Texts that a service is asked at a time to encode: a model takes long, and a request must be answered in time."""

TRIES = 6
"""How often a service that says when to come again is asked."""
LONGEST_WAIT = 30.0
"""Seconds that are waited between two tries, at most, whatever it says."""


class RemoteError(GaussearchError):
    """A service that does not answer, or answers with an error."""

    code = "service_failed"


@dataclass(frozen=True, slots=True)
class QueryBatch:
    """b queries of a file: ids, Gaussians (b, k), the text of each where the file has a text column, the model that
    made the Gaussians, where that is known, and whether it has just read the texts."""

    ids: list[str]
    gaussians: Gaussians
    texts: list[str | None]
    model: ModelRecord | None = None
    read: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """One document of a ranking; `score` is -KL in nats."""

    id: str
    score: float
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of every query: as LocalSearcher.search takes it."""

    top_k: int
    candidates: int | None
    nprobe: int | None
    exact: bool


class Runner(Protocol):
    """Anything that searches a batch."""

    @property
    def model(self) -> ModelRecord | None:
        """The model of the index's Gaussians, where it is known."""

    def search(self, queries: Gaussians, asked: Asked) -> list[list[Result]]:
        """The results of each query."""


def read_queries(
    path: Path, columns: Columns, variance_as: VarianceAs, texts_by: TextSource | None = None
) -> Iterator[QueryBatch]:
    """The queries of a file of any format that corpora may have, or of texts, where there is what makes Gaussians of
    them. Raises SourceError for a file that cannot be read, and for Gaussians of documents."""
    corpus = Corpus([path], columns=columns, variance_as=variance_as, texts=texts_by)
    corpus.require_role(Role.QUERY)
    model = corpus.model()
    # A thread that waits for a service would keep a process that is told to end.
    is_remote = texts_by is not None and isinstance(texts_by.encoder, RemoteRunner)
    for batch in corpus.batches(batch_rows=BATCH_QUERIES, ahead=not is_remote):
        texts: list[str | None] = [None] * len(batch.gaussians)
        if batch.payload is not None and "text" in batch.payload.schema.names:
            texts = batch.payload["text"].to_pylist()
        yield QueryBatch(batch.ids.to_pylist(), batch.gaussians, texts, model, corpus.of_texts)


def in_words(runner: Runner, text: str, source: TextSource | None) -> QueryBatch:
    """One query in words, as a model reads it: that of a service that is asked, if none is named.

    Raises ModelError where there is none.
    """
    if source is not None:
        made = source.encoder.encode([text], Role.QUERY)
        return QueryBatch(["query"], made, [text], source.encoder.record, read=True)
    if isinstance(runner, RemoteRunner):
        return QueryBatch(["query"], runner.encode([text], Role.QUERY), [text])
    raise ModelError("words are searched for by a model: name that of the index with --model")


def search_batch(runner: Runner, batch: QueryBatch, asked: Asked) -> list[list[Result]]:
    """The results of each query; raises ModelMismatchError where they are of another model than the index, or are texts
    and its model is not known."""
    if batch.model is not None:
        require_model(runner.model, batch.model, "the index", reads=batch.read)
    elif isinstance(runner, LocalRunner) and runner.model is not None:
        _say_once(
            f"the queries do not say which model made them; the index is of {runner.model.name!r}, and finds nothing "
            "by Gaussians of another"
        )
    return runner.search(batch.gaussians, asked)


@functools.cache
def _say_once(said: str) -> None:
    print(said, file=sys.stderr)


class LocalRunner:
    """Searches an index in this process."""

    def __init__(self, directory: IndexDirectory | str | Path, device: str) -> None:
        self._searcher = LocalSearcher(directory, device=device)

    @property
    def model(self) -> ModelRecord | None:
        """As Runner."""
        return self._searcher.manifest.model

    def search(self, queries: Gaussians, asked: Asked) -> list[list[Result]]:
        """The top_k documents of each query."""
        found = []
        rankings = self._searcher.search(
            queries, asked.top_k, candidates=asked.candidates, nprobe=asked.nprobe, exact=asked.exact
        )
        for ranking in rankings:
            payloads = self._searcher.payloads(ranking.documents)
            found.append([Result(*parts) for parts in zip(ranking.ids, ranking.scores.tolist(), payloads, strict=True)])
        return found


class RemoteRunner:
    """Searches through a running service; over HTTPS one whose certificate leads to those of the file `ca`, if given.

    Raises what client_context raises.
    """

    def __init__(self, url: str, api_key: str | None, ca: Path | None = None) -> None:
        self._url = url.rstrip("/")
        self._trust = True if ca is None else client_context(ca)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._read_by: str | None = None

    @functools.cached_property
    def model(self) -> ModelRecord | None:
        """As Runner; raises RemoteError."""
        model = self._ask("GET", "/v1/index", "model")
        try:
            return None if model is None else ModelRecord.model_validate(model)
        except ValidationError as error:
            raise RemoteError(
                f"{self._url} names a model that this release does not know: {error.errors()[0]['msg']}"
            ) from error

    @functools.cached_property
    def record(self) -> ModelRecord:
        """As TextEncoder, which a service is that has a model; raises RemoteError where it has none."""
        if self.model is None or not self._ask("GET", "/v1/index", "reads_text"):
            raise RemoteError(
                f"{self._url} has no model to read texts with: start it with --model, or name the model of its index "
                "here with --model"
            )
        self._read_by = self.model.fingerprint
        return self.model

    def encode(self, texts: Sequence[str], role: Role) -> Gaussians:
        """As TextEncoder, some texts at a time; raises RemoteError where the service has no model, or another than it
        had before."""
        made: list[dict[str, Any]] = []
        step = min(TEXTS_TOGETHER, int(self._ask("GET", "/v1/index", "limits")["max_queries"]))
        for first in range(0, len(texts), step):
            body = {"texts": list(texts[first : first + step]), "role": role.value}
            answer = self._answer("POST", "/v1/encode", body)
            self._require_model(self._field(answer, "model"))
            made += self._field(answer, "gaussians")
        return Gaussians.from_arrays([each["mean"] for each in made], [each["variance"] for each in made])

    def search(self, queries: Gaussians, asked: Asked) -> list[list[Result]]:
        """The top_k documents of each query; raises RemoteError with what the service said.

        Asks for as many at a time as the service's limits allow.
        """
        limits = self._ask("GET", "/v1/index", "limits")
        step = max(1, min(int(limits["max_queries"]), int(limits["max_results"]) // asked.top_k))
        found: list[list[Result]] = []
        for part in queries.chunks(step):
            pairs = zip(part.means.tolist(), part.variances.tolist(), strict=True)
            body: dict[str, Any] = {"queries": [{"mean": mean, "variance": variance} for mean, variance in pairs]}
            body |= dataclasses.asdict(asked)
            found += [
                [Result(each["id"], each["score"], each.get("payload") or {}) for each in results]
                for results in self._ask("POST", "/v1/search/batch", "results", body)
            ]
        return found

    def _require_model(self, made_by: Any) -> None:
        """Raises RemoteError unless texts were read by the model that the service had at first."""
        now = made_by.get("fingerprint") if isinstance(made_by, dict) else None
        if self._read_by not in (None, now):
            raise RemoteError(
                f"{self._url} reads texts with another model now than at first: it was started anew meanwhile. Run "
                "this again, so that one model reads all texts"
            )
        self._read_by = now

    def _ask(self, method: str, path: str, field: str, body: dict[str, Any] | None = None) -> Any:
        """One field of the answer to a request."""
        return self._field(self._answer(method, path, body), field)

    def _field(self, response: httpx.Response, field: str) -> Any:
        try:
            return response.json()[field]
        except (ValueError, KeyError, TypeError) as error:
            raise RemoteError(f"{self._url} is not a gaussearch service: {response.text[:200]!r}") from error

    def _answer(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """The answer to a request, which is sent again, some times, where the service says when to."""
        for _ in range(TRIES - 1):
            response = self._send(method, path, body)
            wait = _wait_of(response)
            if wait is None:
                break
            _say_once(f"{self._url} is not able to answer yet: waiting for it")
            time.sleep(wait)
        else:
            response = self._send(method, path, body)
        if response.status_code != httpx.codes.OK:
            raise RemoteError(f"{self._url} answered {response.status_code}: {_detail(response)}")
        return response

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        try:
            return httpx.request(
                method, f"{self._url}{path}", json=body, headers=self._headers, timeout=60.0, verify=self._trust
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RemoteError(f"{self._url} does not answer: {error}") from error


def _wait_of(response: httpx.Response) -> float | None:
    """Seconds after which a request that was turned away for now is to be sent again; None for any other."""
    said = response.headers.get("retry-after")
    is_full = response.status_code == httpx.codes.TOO_MANY_REQUESTS
    if not is_full and (response.status_code != httpx.codes.SERVICE_UNAVAILABLE or said is None):
        return None
    return min(float(said), LONGEST_WAIT) if said is not None and said.isdecimal() else 1.0


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
