"""What a search found, as the JSON of a response."""

import asyncio
import base64
import time
from typing import Any

import orjson
from starlette.responses import Response

from index import Gaussians, Ranking, Searcher
from service.batching import Found
from service.schemas import SearchOptions

__all__ = ["answer", "json_response", "results_of"]

Results = list[dict[str, Any]]

BESIDE_LOOP = 200
"""From this many results on, they are put together in another thread, so that others are served meanwhile."""


async def results_of(found: Found, queries: Gaussians, options: SearchOptions, leave_out: str | None) -> list[Results]:
    """The results of each query, without the document `leave_out`."""
    if sum(len(ranking.ids) for ranking in found.rankings) < BESIDE_LOOP:
        return _all_results(found, queries, options, leave_out)
    return await asyncio.to_thread(_all_results, found, queries, options, leave_out)


def answer(started: float, searcher: Searcher, content: dict[str, Any]) -> Response:
    """The response to a search that began at `started`, a time.perf_counter()."""
    content["took_ms"] = round((time.perf_counter() - started) * 1000, 3)
    content["index"] = {"name": searcher.name, "generation": searcher.manifest.generation}
    return json_response(content)


def json_response(content: Any) -> Response:
    """JSON of anything that payload columns may hold."""
    encoded = orjson.dumps(content, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    return Response(encoded, media_type="application/json")


def _all_results(found: Found, queries: Gaussians, options: SearchOptions, leave_out: str | None) -> list[Results]:
    results = []
    for row, ranking in enumerate(found.rankings):
        kept = ranking.without(leave_out).top(options.top_k)
        if options.min_score is not None:
            kept = kept.top(int((kept.scores >= options.min_score).sum()))
        shown = _results(found, kept, options)
        if options.explain:
            explanations = found.searcher.explain(queries[row : row + 1], kept.documents)
            for result, explanation in zip(shown, explanations, strict=True):
                result["explanation"] = explanation
        results.append(shown)
    return results


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
