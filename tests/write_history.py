"""What clients of a service have written, and what must therefore be in the index: for tests that kill it."""

import json
import math
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any

from index import IndexDirectory
from index.compaction import live_batches
from index.generation_files import deleted_rows, open_segments
from tests.forked_server import AUTHORISED
from tests.serving import PATIENCE

K = 2


def document(name: str, number: int) -> dict[str, Any]:
    """A document that says in each of its parts which request wrote it."""
    return {"id": name, "mean": [float(number)] * K, "variance": [1.0 + number] * K, "payload": {"request": number}}


@dataclass(slots=True)
class Write:
    """A request that changes the documents with these ids; `own` are those that no other changes at the same time."""

    number: int
    method: str
    path: str
    ids: list[str]
    own: list[str]
    began: float = 0.0
    acknowledged: float = math.inf

    @property
    def deletes(self) -> bool:
        """Whether its documents are gone afterwards."""
        return self.path != "/v1/documents"

    @property
    def body(self) -> str | None:
        """What is sent."""
        if self.method == "DELETE":
            return None
        if self.deletes:
            return json.dumps({"ids": self.ids})
        return json.dumps({"documents": [document(name, self.number) for name in self.ids]})


class Connection:
    """One connection to a service, on which one request follows the other."""

    def __init__(self, port: int) -> None:
        self._http = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

    def close(self) -> None:
        """Closes it."""
        self._http.close()

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, Any, bool]:
        """Status, answer, and whether it is that of a request that was made before. Raises OSError or HTTPException
        where none comes."""
        self._http.request(method, path, body, {**AUTHORISED, **headers})
        response = self._http.getresponse()
        return response.status, json.loads(response.read()), response.headers["Idempotency-Replayed"] == "true"

    def send(self, write: Write) -> tuple[int, Any, bool]:
        """Sends a write and notes when it has been acknowledged."""
        write.began = write.began or time.monotonic()
        answer = self.ask(write.method, write.path, write.body, **{"Idempotency-Key": f"request-{write.number}"})
        assert answer[0] in ((200, 404) if write.method == "DELETE" else (200,)), answer
        write.acknowledged = time.monotonic()
        return answer


NoAnswer = (OSError, HTTPException)
"""What a client meets whose service has been killed."""


@dataclass(slots=True)
class History:
    """All writes to an index that held `base` documents before, none of which they change."""

    base: int
    writes: list[Write] = field(default_factory=list)

    def check(self, directory: IndexDirectory) -> set[int]:
        """Holds an index on disk to it; the numbers of the writes that were not acknowledged and have been made."""
        there = documents_of(directory)
        by_id: dict[str, list[Write]] = {}
        for write in self.writes:
            for name in write.ids:
                by_id.setdefault(name, []).append(write)
        written = there.keys() & by_id.keys()
        assert len(there) == self.base + len(written), "there are documents that nobody wrote, or some are gone"
        seen: set[int] = set()
        for name, writes in by_id.items():
            allowed = _last(writes)
            number = there.get(name)
            makers = [write for write in allowed if (write.deletes if number is None else write.number == number)]
            untouched = number is None and all(write.acknowledged == math.inf for write in writes)
            assert makers or untouched, f"{name} is of request {number}, not of {[each.number for each in allowed]}"
            seen |= {number} if number is not None else set()
        made: set[int] = set()
        for write in (each for each in self.writes if each.acknowledged == math.inf):
            halves = {there.get(name) == (None if write.deletes else write.number) for name in write.own}
            assert len(halves) == 1, f"half of request {write.number} is there: {there}"
            made |= {write.number} if halves == {True} else set()
            assert write.number in made or write.number not in seen, f"a part of request {write.number} is there"
        return made


def _last(writes: list[Write]) -> list[Write]:
    """Those of the writes of an id of which each may be the last: after which none began that was acknowledged."""
    latest = max((each.began for each in writes if each.acknowledged < math.inf), default=-math.inf)
    return [each for each in writes if each.acknowledged > latest]


def documents_of(directory: IndexDirectory) -> dict[str, int | None]:
    """The ids of all documents, and which request wrote each, all of whose parts have to say the same."""
    manifest = directory.verify()
    found: dict[str, int | None] = {}
    for entry, segment in zip(manifest.segments, open_segments(directory, manifest, verify=False), strict=True):
        for batch in live_batches(segment, deleted_rows(directory, entry)):
            assert batch.payload is not None
            numbers = batch.payload["request"].to_pylist()
            parts = zip(numbers, batch.gaussians.means.tolist(), batch.gaussians.variances.tolist(), strict=True)
            for name, (number, mean, variance) in zip(batch.ids.to_pylist(), parts, strict=True):
                assert name not in found, f"{name} is there twice"
                whole = number < 0 or (mean == [float(number)] * K and variance == [1.0 + number] * K)
                assert whole, f"{name} is of two requests"
                found[name] = number
    assert len(found) == manifest.documents
    return found
