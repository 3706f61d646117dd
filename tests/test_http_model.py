"""Any sequence of requests that write, delete, search and compact gives what a dictionary would."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from index import AddOptions, BuildOptions, IndexDirectory, WriteOptions, add_documents, build_index, delete_documents
from tests.dictionary_model import Document, Gaussian, K, at_least, documents, gaussians, ids, require_best
from tests.serving import PATIENCE, Client, open_client, wait_until

ADMIN = "an-admin-key-of-enough-letters"
AUTHORISED = {"Authorization": f"Bearer {ADMIN}"}
BASE = "base"
"""A document that stays, so that there always is one, with a payload."""


def build(folder: Path) -> None:
    table = {"id": [BASE], "mean": [[0.0] * K], "variance": [[1.0] * K], "n": [0]}
    pq.write_table(pa.table(table), folder / "corpus.parquet")
    build_index([folder / "corpus.parquet"], IndexDirectory(folder / "built"), BuildOptions(segment_docs=6))


class HttpModel(RuleBasedStateMachine):
    """A service, and the documents that must be in it."""

    folder: Path
    names = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.directory = IndexDirectory(shutil.copytree(self.folder / "built", self.folder / f"i{next(self.names)}"))
        self.client: Client = open_client(self.directory, admin_key=ADMIN, reload_seconds=0.02)
        self.documents: dict[str, Document] = {BASE: (((0.0,) * K, (1.0,) * K), 0)}
        self.sent: list[tuple[str, str, Any, Any]] = []
        self.generation = 1

    def teardown(self) -> None:
        self.client.close()
        assert self.directory.verify().documents == len(self.documents)
        shutil.rmtree(self.directory.path)

    def send(self, method: str, path: str, body: Any, key: str) -> Any:
        answer = self.client.request(method, path, json=body, headers={**AUTHORISED, "Idempotency-Key": key})
        assert answer.status_code == 200, answer.text
        return answer

    def change(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Has a change made, and returns what it counted."""
        answer = self.send(method, path, body, f"k{len(self.sent)}").json()
        self.sent.append((method, path, body, answer))
        assert answer["index"]["generation"] > self.generation
        self.generation = answer["index"]["generation"]
        return {name: value for name, value in answer.items() if name not in ("took_ms", "index")}

    @rule(wanted=documents)
    def upsert(self, wanted: dict[str, Document]) -> None:
        body = [
            {"id": name, "mean": mean, "variance": variance, "payload": {} if n is None else {"n": n}}
            for name, ((mean, variance), n) in wanted.items()
        ]
        replaced = len(wanted.keys() & self.documents.keys())
        counted = self.change("POST", "/v1/documents", {"documents": body})
        assert counted == {"written": len(wanted), "replaced": replaced}
        self.documents |= wanted

    @rule(wanted=st.lists(ids, min_size=1, max_size=4))
    def delete(self, wanted: list[str]) -> None:
        found = set(wanted) & self.documents.keys()
        counted = self.change("POST", "/v1/documents/delete", {"ids": wanted})
        assert counted == {"deleted": len(found), "missing": len({*wanted}) - len(found)}
        for name in found:
            del self.documents[name]

    @rule(name=ids)
    def delete_one(self, name: str) -> None:
        if name in self.documents:
            assert self.change("DELETE", f"/v1/documents/{name}") == {"deleted": 1, "missing": 0}
            del self.documents[name]
        else:
            assert self.client.request("DELETE", f"/v1/documents/{name}", headers=AUTHORISED).status_code == 404

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def resend(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.sent) - 1))
        method, path, body, before = self.sent[place]
        answer = self.send(method, path, body, f"k{place}")
        assert answer.headers["Idempotency-Replayed"] == "true"
        assert {**answer.json(), "took_ms": 0} == {**before, "took_ms": 0}

    @rule(query=gaussians, top_k=st.integers(1, 12), least=st.none() | st.integers(0, 6))
    def search(self, query: Gaussian, top_k: int, least: int | None) -> None:
        body: dict[str, Any] = {"mean": query[0], "variance": query[1], "top_k": top_k}
        among = self.documents
        if least is not None:
            body["filter"] = {"n": {"gte": least}}
            among = at_least(among, least)
        answer = self.client.post("/v1/search", body)
        assert answer.status_code == 200, answer.text
        assert answer.json().get("matched") == (None if least is None else len(among))
        self.require(answer.json(), query, among, top_k)

    @rule(name=ids | st.just(BASE), top_k=st.integers(1, 12), include=st.booleans())
    def similar(self, name: str, top_k: int, include: bool) -> None:
        answer = self.client.post(f"/v1/documents/{name}/similar", {"top_k": top_k, "include_self": include})
        if name not in self.documents:
            assert answer.status_code == 404
            return
        among = {other: each for other, each in self.documents.items() if include or other != name}
        self.require(answer.json(), self.documents[name][0], among, top_k)

    def require(self, answer: Any, query: Gaussian, among: dict[str, Document], top_k: int) -> None:
        """The results are the best of these documents, each with its score and payload."""
        assert answer["index"]["generation"] >= self.generation
        results = answer["results"]
        require_best([(each["id"], each["score"]) for each in results], query, among, top_k)
        for each in results:
            assert each["payload"].get("n") == among[each["id"]][1]

    @rule(name=ids)
    def fetch(self, name: str) -> None:
        answer = self.client.get(f"/v1/documents/{name}")
        if name not in self.documents:
            assert answer.status_code == 404
            return
        (mean, variance), n = self.documents[name]
        found = answer.json()
        assert (tuple(found["mean"]), tuple(found["variance"])) == (mean, variance)
        assert found["payload"].get("n") == n

    @rule(retrain=st.booleans())
    def compact(self, retrain: bool) -> None:
        answer = self.client.post("/v1/index/compact", {"retrain": retrain}, headers=AUTHORISED)
        assert answer.status_code == 202
        wait_until(lambda: not self.client.get("/v1/index").json()["compaction"]["running"])
        described = self.client.get("/v1/index").json()
        assert described["compaction"]["last_error"] is None
        assert (described["documents"], described["deleted_rows"]) == (len(self.documents), 0)

    @rule(wanted=documents)
    def write_from_outside(self, wanted: dict[str, Document]) -> None:
        columns = {
            "id": [*wanted],
            "mean": pa.array([mean for (mean, _), _ in wanted.values()], pa.list_(pa.float32())),
            "variance": pa.array([variance for (_, variance), _ in wanted.values()], pa.list_(pa.float32())),
            "n": pa.array([n for _, n in wanted.values()], pa.int64()),
        }
        corpus = self.directory.path.with_suffix(".parquet")
        pq.write_table(pa.table(columns), corpus)
        add_documents([str(corpus)], self.directory, AddOptions(wait=PATIENCE))
        self.documents |= wanted
        self.seen_from_outside()

    @rule(wanted=st.lists(ids, min_size=1, max_size=4))
    def delete_from_outside(self, wanted: list[str]) -> None:
        delete_documents(wanted, self.directory, WriteOptions(wait=PATIENCE))
        self.documents = {name: each for name, each in self.documents.items() if name not in wanted}
        self.seen_from_outside()

    def seen_from_outside(self) -> None:
        generation = self.directory.manifest().generation
        wait_until(lambda: self.client.get("/v1/index").json()["generation"] >= generation)
        self.generation = generation


def test_requests_in_any_order_give_what_a_dictionary_would(memory: Path) -> None:
    build(memory)
    HttpModel.folder = memory
    run_state_machine_as_test(
        HttpModel,
        settings=settings(max_examples=30, stateful_step_count=30, suppress_health_check=list(HealthCheck)),
    )
