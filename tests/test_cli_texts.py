"""Queries in words that a service reads, on the command line."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer
from typer.testing import CliRunner, Result

from index import Columns, VarianceAs, build_index
from index.text import Role
from index.text.head import HeadEncoder
from index.text.rows import TextSource
from service import cli
from service.app import create_app
from service.runs import LONGEST_WAIT, TRIES, RemoteError, RemoteRunner, read_queries
from service.settings import ServiceSettings
from tests.conftest import random_gaussians, write_corpus
from tests.text_models import head_model
from tests.word_encoder import WordEncoder

QUERIES = 70


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def told(*arguments: object) -> list[list[str]]:
    """The ids that are found for each query."""
    done = run("search", *arguments, "--format", "jsonl", "--top-k", 3)
    assert done.exit_code == 0, done.output
    return [[found["id"] for found in json.loads(line)["results"]] for line in done.stdout.splitlines()]


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> WordEncoder:
    """What a service loads as its model."""
    made = WordEncoder()
    monkeypatch.setattr("service.encoding.load_encoder", lambda *_, **__: made)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An index of texts, and queries in several forms."""
    rows = [{"_id": f"d{row}", "text": f"text {row}"} for row in range(40)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_index([tmp_path / "texts.jsonl"], tmp_path / "index", encoder=WordEncoder())
    words = [f"text {row % 40}" for row in range(QUERIES)]
    lines = [{"id": f"q{row}", "text": text, "body": f"other {text}"} for row, text in enumerate(words)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "q.tsv").write_text("".join(f"q{row}\t{text}\n" for row, text in enumerate(words)))
    write_corpus(tmp_path / "both.parquet", random_gaussians(3, 5), text=["one", "two", "three"])
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\nq3\td3\t1\n")
    return tmp_path


def test_a_service_reads_the_texts_of_a_file(folder: Path, encoder: WordEncoder, listen: Callable[..., int]) -> None:
    port = listen(create_app(ServiceSettings(index=folder / "index", model="given", max_queries=20)))
    where = ("--url", f"http://127.0.0.1:{port}")
    encoder.read.clear()
    found = told("--queries", folder / "q.jsonl", *where)
    assert encoder.read == [(f"text {row % 40}", Role.QUERY) for row in range(QUERIES)]
    assert len(found) == QUERIES
    assert [found[row] for row in (0, 7, 47)] == [told("--text", f"text {row}", *where)[0] for row in (0, 7, 7)]
    assert told("--queries", folder / "q.tsv", *where) == found
    assert told("--queries", folder / "q.jsonl", "--text-column", "body", *where) != found
    # Gaussians stay what they are, whatever texts are beside them.
    encoder.read.clear()
    assert told("--queries", folder / "both.parquet", *where) == told(
        *("--queries", folder / "both.parquet", "--index", folder / "index")
    )
    assert encoder.read == []
    evaluated = run("evaluate", "--queries", folder / "q.jsonl", "--qrels", folder / "qrels.tsv", *where)
    assert evaluated.exit_code == 0, evaluated.output
    assert "3 queries evaluated" in evaluated.stdout


def test_a_service_that_is_full_or_not_ready_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    answers: list[httpx.Response] = []
    monkeypatch.setattr("service.runs.time.sleep", waited.append)
    monkeypatch.setattr("service.runs.httpx.request", lambda *_, **__: answers.pop(0))

    def turned_away(status: int, **headers: str) -> httpx.Response:
        return httpx.Response(status, headers={name.replace("_", "-"): said for name, said in headers.items()}, json={})

    fine = httpx.Response(200, json={"model": None})
    answers += [turned_away(429, retry_after="7"), turned_away(503, retry_after="900"), turned_away(429), fine]
    assert RemoteRunner("http://there", None).model is None
    assert waited == [7, LONGEST_WAIT, 1]
    for refused, tries in ((turned_away(429, retry_after="2"), TRIES), (turned_away(503), 1), (turned_away(500), 1)):
        answers[:] = [refused] * 20
        with pytest.raises(RemoteError, match=f"answered {refused.status_code}"):
            _ = RemoteRunner("http://there", None).model
        assert len(answers) == 20 - tries


def test_a_service_that_has_another_model_all_at_once_is_an_error(
    folder: Path, encoder: WordEncoder, listen: Callable[..., int]
) -> None:
    runner = RemoteRunner(
        f"http://127.0.0.1:{listen(create_app(ServiceSettings(index=folder / 'index', model='given')))}", None
    )
    source = TextSource(runner, Role.QUERY)
    reading = read_queries(folder / "q.jsonl", Columns(), VarianceAs.VARIANCE, source)
    assert len(next(reading).ids) == QUERIES
    encoder.record = WordEncoder("another").record
    for texts in (["a"], ["a"] * 40):
        with pytest.raises(RemoteError, match="reads texts with another model now than at first"):
            runner.encode(texts, Role.QUERY)
    other = RemoteRunner(runner._url, None)
    other.encode(["a"], Role.QUERY)
    encoder.record = WordEncoder().record
    with pytest.raises(RemoteError, match="reads texts with another model now than at first"):
        other.encode(["a"], Role.QUERY)


def test_no_thread_waits_for_a_service(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that did would keep a command that is told to end."""
    reading: list[threading.Thread] = []

    def encode(_: RemoteRunner, texts: list[str], role: Role) -> Any:
        reading.append(threading.current_thread())
        return WordEncoder().encode(texts, role)

    monkeypatch.setattr(RemoteRunner, "encode", encode)
    monkeypatch.setattr(RemoteRunner, "record", WordEncoder().record)
    source = TextSource(RemoteRunner("http://there", None), Role.QUERY)
    (batch,) = read_queries(folder / "q.jsonl", Columns(), VarianceAs.VARIANCE, source)
    assert len(batch.ids) == QUERIES
    assert reading == [threading.current_thread()]


def test_texts_are_read_by_nobody_where_there_is_no_model(folder: Path, listen: Callable[..., int]) -> None:
    port = listen(create_app(ServiceSettings(index=folder / "index")))
    refused = run("search", "--queries", folder / "q.jsonl", "--url", f"http://127.0.0.1:{port}")
    assert refused.exit_code == 1
    assert "has no model to read texts with: start it with --model, or name the model of its index" in refused.stderr
    local = run("search", "--queries", folder / "q.jsonl", "--index", folder / "index")
    assert local.exit_code == 1
    assert "or which model is to make Gaussians of its texts (--model)" in local.stderr


def test_a_panic_of_a_services_tokenizer_is_the_end_of_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: Callable[..., int]
) -> None:
    model = head_model(tmp_path / "model")
    (tmp_path / "texts.jsonl").write_text('{"_id": "d1", "text": "bread"}\n')
    built = run("build", tmp_path / "texts.jsonl", "--index", tmp_path / "index", "--model", model)
    assert built.exit_code == 0, built.output
    words = json.loads((model / "base" / "tokenizer.json").read_text())
    panicking = Tokenizer.from_str(json.dumps({**words, "pre_tokenizer": {"type": "FixedLength", "length": 0}}))
    read = HeadEncoder._gaussians

    def reading(self: HeadEncoder, texts: list[str], role: Role) -> Any:
        if texts == ["horse"]:
            panicking.encode("horse")
        return read(self, texts, role)

    monkeypatch.setattr(HeadEncoder, "_gaussians", reading)
    port = listen(create_app(ServiceSettings(index=tmp_path / "index", model=str(model))))
    where = ("--url", f"http://127.0.0.1:{port}")
    for _ in range(2):
        refused = run("search", "--text", "horse", *where)
        assert (refused.exit_code, "answered 500" in refused.stderr) == (1, True)
        assert told("--text", "bread", *where) == [["d1"]]
