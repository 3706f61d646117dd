"""Every command, and the service, on an index in object storage."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from index import BuildOptions, LocalSearcher, build_index, delete_documents
from service import cli
from tests.conftest import Serve, random_gaussians, write_corpus
from tests.object_storage import Storage
from tests.serving import Client, wait_until

K = 4
Run = Callable[..., Result]


@pytest.fixture
def run(storage: Storage) -> Run:
    """Runs a command on the index; what it prints must say so where it fails."""

    def run(command: str, *arguments: object, status: int = 0) -> Result:
        its = ["--index", storage.uri] if command != "help" else []
        result = CliRunner().invoke(
            cli.app, [command, *map(str, arguments), *its], env={"COLUMNS": "300"}, catch_exceptions=False
        )
        assert result.exit_code == status, result.output
        return result

    return run


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.parquet", random_gaussians(40, K, seed=1))


def test_all_commands_take_a_uri(storage: Storage, run: Run, tmp_path: Path, corpus: Path) -> None:
    queries = write_corpus(tmp_path / "queries.parquet", random_gaussians(3, K, seed=2), ["q1", "q2", "q3"])
    more = write_corpus(tmp_path / "more.parquet", random_gaussians(5, K, seed=3), [f"m{row}" for row in range(5)])
    built = run("build", corpus, "--segment-docs", 25, "--device", "cpu")
    assert storage.uri in built.stdout
    assert "built and published" in built.stdout
    assert "already up to date" in run("build", corpus, "--segment-docs", 25, "--device", "cpu").stdout
    assert storage.uri in run("inspect").stdout
    assert run("verify").stdout == f"{storage.uri}: generation 1 is intact: 40 documents\n"
    local = tmp_path / "local"
    build_index([corpus], local, BuildOptions(segment_docs=25, device="cpu"))
    found = run("search", "--queries", queries, "--format", "trec", "--device", "cpu").stdout
    here = CliRunner().invoke(
        cli.app, ["search", "--queries", str(queries), "--format", "trec", "--index", str(local), "--device", "cpu"]
    )
    assert found == here.stdout
    assert "added and published" in run("add", more).stdout
    assert "deleted and published" in run("delete", "--ids", "d0", "--keep-generations", 5).stdout
    assert "compacted and published" in run("compact", "--device", "cpu", "--keep-generations", 5).stdout
    rows = json.loads(run("generations", "--format", "json", "--pin", 3).stdout)
    assert [(row["generation"], row["live"], row["pinned"]) for row in rows] == [
        (1, False, False),
        (2, False, False),
        (3, False, True),
        (4, True, False),
    ]
    assert rows[-1]["bytes"] > sum(entry.bytes for entry in storage.on("reader").manifest().segments)
    assert "generation 2 is live again" in run("rollback", 2).stdout
    assert len(LocalSearcher(storage.on("reader"))) == 45
    run("backup", tmp_path / "backup.tar")
    assert "restored and published" in run("restore", tmp_path / "backup.tar").stdout
    assert storage.on("reader").verify().restores == 5
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("".join(f"q{number} 0 d{number} 1\n" for number in (1, 2, 3)))
    told = run("evaluate", "--qrels", qrels, "--queries", queries, "--format", "json", "--device", "cpu").stdout
    assert json.loads(told)["queries"]["evaluated"] == 3


def test_a_failure_is_one_line_and_a_status(storage: Storage, run: Run, corpus: Path) -> None:
    said = run("inspect", status=1).stderr
    assert said == (
        f"gaussearch: no index in {storage.uri}: {storage.uri}/CURRENT does not exist; build one with `gaussearch "
        "build` [index_not_found]\n"
    )
    storage.fail("ExpiredToken", times=10_000)
    for command in (["verify"], ["serve", "--port", "0"], ["build", corpus], ["search", "--queries", corpus]):
        (line,) = run(*command, status=1).stderr.splitlines()
        assert line.startswith(f"gaussearch: {storage.uri}/CURRENT cannot be read: storage says ExpiredToken: The prov")
        assert line.endswith("[storage_denied]")


def test_a_location_of_no_known_kind_is_told(tmp_path: Path, corpus: Path) -> None:
    for command in (["inspect"], ["build", str(corpus)], ["generations"], ["delete", "--ids", "d"], ["serve"]):
        result = CliRunner().invoke(cli.app, [*command, "--index", "ftp://host/x"])
        assert result.exit_code == 1
        assert "an index can lie at a path or at file://, s3://, gs://, az://, not at ftp://" in result.stderr
    local = CliRunner().invoke(cli.app, ["build", str(corpus), "--index", f"file://{tmp_path}/local"])
    assert local.exit_code == 0
    assert (tmp_path / "local" / "CURRENT").is_file()


ADMIN = {"Authorization": f"Bearer {'a' * 40}"}


@pytest.fixture
def built(storage: Storage, corpus: Path) -> Storage:
    build_index([corpus], storage.on("builder"), BuildOptions(device="cpu", segment_docs=25))
    return storage


@pytest.fixture
def client(built: Storage, serve: Serve) -> Client:
    """A service that takes writes, and looks for generations all the time."""
    settings: dict[str, Any] = {"admin_key": "a" * 40, "device": "cpu", "reload_seconds": 0.01}
    return serve(built.uri, cache=built.folder / "service", **settings)


def served(client: Client) -> tuple[int, int]:
    """Which generation, and how many documents."""
    said = client.get("/v1/index").json()
    return said["generation"], said["documents"]


def write(client: Client, name: str, **headers: str) -> Any:
    documents = [{"id": name, "mean": [0.5] * K, "variance": [1.0] * K}]
    return client.post("/v1/documents", {"documents": documents}, headers={**ADMIN, **headers})


def test_a_service_takes_up_what_is_published_elsewhere(built: Storage, client: Client) -> None:
    assert client.get("/v1/index").json()["name"] == "index"
    assert served(client) == (1, 40)
    delete_documents(["d1"], built.on("writer"))
    wait_until(lambda: served(client) == (2, 39))


def test_a_service_stays_with_what_it_has_while_storage_fails(built: Storage, client: Client) -> None:
    built.fail("AccessDenied", name="CURRENT", times=10_000)
    wait_until(lambda: client.metric("gaussearch_index_reload_failures_total"))
    assert "storage says AccessDenied" in client.get("/v1/index").json()["reload"]["last_error"]
    query = {"mean": [0.0] * K, "variance": [1.0] * K}
    assert len(client.post("/v1/search", query).json()["results"]) == 10
    built.faulty.heal()
    wait_until(lambda: client.get("/v1/index").json()["reload"]["last_error"] is None)
    assert served(client) == (1, 40)
    delete_documents(["d1"], built.on("writer"))
    wait_until(lambda: served(client) == (2, 39))


def test_what_is_written_through_a_service_is_in_storage(built: Storage, client: Client) -> None:
    assert (write(client, "new").json()["written"], client.get("/v1/index").json()["generation"]) == (1, 2)
    assert served(client) == (2, 41)
    gone = client.post("/v1/documents/delete", {"ids": ["d1", "none"]}, headers=ADMIN)
    assert (gone.json()["deleted"], gone.json()["index"]["generation"]) == (1, 3)
    reader = built.on("reader")
    reader.verify_stored(reader.verify())
    searcher = LocalSearcher(reader)
    assert searcher.document("new").id == "new"
    assert len(searcher) == 40


def test_a_write_that_another_machine_overtakes_is_made_after_it(built: Storage, client: Client) -> None:
    gate = built.fail("hang", method="PUT", name="CURRENT")
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(write, client, "new")
        gate.reached.wait()
        delete_documents(["d1"], built.on("other"))
        gate.release.set()
        assert answer.result().json()["written"] == 1
    searcher = LocalSearcher(built.on("reader"))
    assert searcher.document("new").id == "new"
    assert len(searcher) == 40


def test_a_write_that_storage_refuses_is_told_and_can_be_sent_again(built: Storage, client: Client) -> None:
    refused = built.fail("AccessDenied", method="PUT", name="CURRENT", times=1)
    key = {"Idempotency-Key": "one"}
    answer = write(client, "new", **key)
    assert (answer.status_code, answer.json()["code"]) == (503, "write_failed")
    assert refused.reached.is_set()
    assert write(client, "new", **key).json()["written"] == 1
    assert len(LocalSearcher(built.on("reader"))) == 41


def test_a_service_compacts_it(built: Storage, client: Client) -> None:
    for name in ("a", "b"):
        write(client, name)
    assert len(built.on("reader").manifest().segments) == 4
    assert client.post("/v1/index/compact", {}, headers=ADMIN).status_code == 202
    wait_until(lambda: len(built.on("reader").manifest().segments) == 2)
    wait_until(lambda: served(client)[0] == built.on("reader").manifest().generation)
    assert served(client)[1] == 42
