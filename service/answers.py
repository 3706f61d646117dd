"""What a search found, as the JSON of a response."""

import asyncio
import base64
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import orjson
from starlette.responses import Response

from index import Gaussians, Ranking, Searcher
from index.interface import RemoteSearcher, Terms
from service.problems import DeadlineExceededError
from service.schemas import SearchOptions
from service.searching import Found

__all__ = ["answer", "evidence_of", "in_time", "json_response", "results_of"]

Results = list[dict[str, Any]]

BESIDE_LOOP = 200
"""From this many results on, they are put together in another thread, so that others are served meanwhile."""


async def results_of(
    found: Found, queries: Gaussians, options: SearchOptions, leave_out: str | None, deadline: float
) -> list[Results]:
    """The results of each query, without the document `leave_out`.

    Raises DeadlineExceededError where they are many, and not put together by `deadline`, a time.monotonic().
    """
    is_remote = isinstance(found.searcher, RemoteSearcher)
    if is_remote:
        found = dataclasses.replace(found, searcher=in_time(found.searcher, deadline))
    fetches = options.explain or (options.with_payload and found.payloads is None)
    if sum(len(ranking.ids) for ranking in found.rankings) < BESIDE_LOOP and not (is_remote and fetches):
        return list(_all_results(found, queries, options, leave_out))
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await asyncio.to_thread(_in_time, _all_results(found, queries, options, leave_out), deadline)
    except TimeoutError as error:
        raise DeadlineExceededError("the deadline passed before the results were put together") from error


def in_time(searcher: Searcher, deadline: float) -> Searcher:
    """A searcher that waits for other processes until `deadline`, a time.monotonic(), if it does at all."""
    return searcher.within(Terms(deadline)) if isinstance(searcher, RemoteSearcher) else searcher


def _in_time(results: Iterator[Results], deadline: float) -> list[Results]:
    made = []
    for its in results:
        made.append(its)
        if time.monotonic() >= deadline:
            # Nobody waits for the others, and this thread is one of a few.
            raise TimeoutError
    return made


def evidence_of(found: Found) -> list[dict[str, Any]]:
    """What the results of each query rest on; empty where a searcher does not say."""
    evidence = [ranking.evidence for ranking in found.rankings]
    return [{**its._asdict(), "proven": its.proof is not None} for its in evidence if its is not None]


def answer(started: float, searcher: Searcher, content: dict[str, Any]) -> Response:
    """The response to a search that began at `started`, a time.perf_counter()."""
    content["took_ms"] = round((time.perf_counter() - started) * 1000, 3)
    content["index"] = {"name": searcher.name, "generation": searcher.manifest.generation}
    return json_response(content)


def json_response(content: Any, status: int = 200) -> Response:
    """JSON of anything that payload columns may hold."""
    encoded = orjson.dumps(content, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    return Response(encoded, status, media_type="application/json")


def _all_results(found: Found, queries: Gaussians, options: SearchOptions, leave_out: str | None) -> Iterator[Results]:
    for row, ranking in enumerate(found.rankings):
        kept = ranking.without(leave_out).top(options.top_k)
        if options.min_score is not None:
            kept = kept.top(int((kept.scores >= options.min_score).sum()))
        shown = _results(found, kept, options)
        if options.explain:
            explanations = found.searcher.explain(queries[row : row + 1], kept.documents)
            for result, explanation in zip(shown, explanations, strict=True):
                result["explanation"] = explanation
        yield shown


def _results(found: Found, ranking: Ranking, options: SearchOptions) -> Results:
    pairs = zip(ranking.ids, ranking.scores.tolist(), strict=True)
    if not options.with_payload:
        return [{"id": name, "score": score} for name, score in pairs]
    if found.payloads is not None:
        payloads = [found.payloads[number] for number in ranking.documents.tolist()]
    else:
        payloads = found.searcher.payloads(ranking.documents)
    return [
        {"id": name, "score": score, "payload": payload} for (name, score), payload in zip(pairs, payloads, strict=True)
    ]


def _plain(value: object) -> object:
    """JSON for what it has no type for: bytes as base64, anything else as text."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
