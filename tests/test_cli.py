"""The command line, in this process: what it builds, prints and searches, and how it ends."""

import json
import re
import runpy
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner, Result

import index.build_choice
from index import AddOptions, BuildOptions, CompactOptions, IndexDirectory, LocalSearcher, WriteOptions
from index.build_options import EncodeOptions
from service import cli
from service.app import create_app
from service.options import option_name
from service.progress import LineProgress
from service.settings import ENV_PREFIX, ServiceSettings
from tests.conftest import MakeIndex, random_gaussians, write_corpus
from tests.serving import Served

Run = Callable[..., Result]
QUERIES = random_gaussians(3, 5, seed=21)


@pytest.fixture
def run() -> Run:
    """Runs the command in this process."""

    def run(*arguments: object, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(
            cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "200", **(env or {})}
        )

    return run


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "queries.parquet", QUERIES, ["q1", "q2", "q3"], text=["one", "[two]", "three"])


def plain(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


COMMANDS: dict[str, set[str]] = {
    "build": {"--index", *map(option_name, BuildOptions.model_fields)},
    "inspect": {"--index", "--plot"},
    "verify": {"--index", "--generation"},
    "add": {"--index", *map(option_name, AddOptions.model_fields)},
    "delete": {"--index", "--ids", "--ids-file", *map(option_name, WriteOptions.model_fields)},
    "compact": {"--index", *map(option_name, CompactOptions.model_fields)},
    "generations": {"--index", "--pin", "--unpin", "--wait", "--format"},
    "rollback": {"GENERATION", "--index", *map(option_name, WriteOptions.model_fields)},
    "backup": {"TARGET", "--index", "--generation"},
    "restore": {"SOURCE", "--index", *map(option_name, WriteOptions.model_fields)},
    "encode": {"INPUT", "OUTPUT.parquet", *map(option_name, EncodeOptions.model_fields)},
    "search": {
        *(
            "--queries",
            "--text",
            "--model",
            "--text-column",
            "--candidates",
            "--nprobe",
            "--exact",
            "--index",
            "--url",
            "--top-k",
            "--format",
            "--device",
            "--api-key",
            "--ca",
        ),
        *("--id-column", "--mean-column", "--variance-column", "--variance-as"),
    },
    "evaluate": {
        *("--qrels", "--run", "--index", "--url", "--queries", "--measures", "--against", "--per-query", "--save-run"),
        *("--format", "--top-k", "--candidates", "--nprobe", "--exact", "--device", "--api-key", "--ca"),
        *(
            "--model",
            "--text-column",
            "--relevant-column",
            "--id-column",
            "--mean-column",
            "--variance-column",
            "--variance-as",
        ),
    },
    "serve": set(map(option_name, ServiceSettings.model_fields)),
}


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_explains_every_option(run: Run, command: str) -> None:
    shown = run(command, "--help")
    assert shown.exit_code == 0
    for name in COMMANDS[command]:
        assert name in plain(shown.output)
    models: dict[str, type[BaseModel]] = {
        "build": BuildOptions,
        "add": AddOptions,
        "compact": CompactOptions,
        "serve": ServiceSettings,
    }
    fields = models[command].model_fields if command in models else {}
    for name, field in fields.items():
        assert str(field.description).split(".")[0][:30] in plain(shown.output)
        assert f"{ENV_PREFIX}{name.upper()}" in plain(shown.output)


def test_help_lists_every_command(run: Run) -> None:
    shown = run("--help")
    assert set(typer.main.get_command(cli.app).commands) == set(COMMANDS)  # type: ignore[attr-defined]
    assert all(command in shown.output for command in COMMANDS)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("fastscan", ["codes", "bytes per document", "of", "times as many that are found"]),
        ("ivf-fastscan", ["lists", "of which a query looks into (nprobe)"]),
        ("hnsw", ["24 links (M), chosen of 120 (efConstruction)"]),
        ("auto", ["why this kind", "auto:", "millisecond", "measured recall", "scored exactly"]),
    ],
)
def test_inspect_says_what_is_searched_and_why(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, said: list[str]
) -> None:
    monkeypatch.setattr(index.build_choice, "FLAT_NUMBERS", 0)
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(2000, 8, seed=1))
    built = plain(run("build", corpus, "--index", tmp_path / "i", "--kind", kind).output)
    inspected = plain(run("inspect", "--index", tmp_path / "i").output)
    for part in said:
        assert part in inspected
        assert part in built


def test_build_inspect_and_verify(run: Run, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(30, 4))
    built = run("build", corpus, "--index", tmp_path / "i", "--encoding", "folded", "--segment-docs", "12")
    assert built.exit_code == 0, built.output
    assert "built and published" in built.output
    manifest = IndexDirectory(tmp_path / "i").manifest()
    assert (manifest.documents, manifest.encoding.value, len(manifest.segments)) == (30, "folded", 3)
    inspected = plain(run("inspect", "--index", tmp_path / "i").output)
    for part in (
        "generation 1",
        "documents 30",
        "dimensions (k) 4",
        "folded (9 numbers per document)",
        "corpus.parquet",
    ):
        assert part in inspected
    verified = run("verify", "--index", tmp_path / "i")
    assert (verified.exit_code, "30 documents" in verified.output) == (0, True)
    again = run("build", corpus, "--index", tmp_path / "i", "--encoding", "folded", "--segment-docs", "12")
    assert "already up to date" in again.output


def test_a_build_says_what_it_replaces(run: Run, tmp_path: Path) -> None:
    def build(documents: int, k: int) -> list[str]:
        corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(documents, k))
        done = run("build", corpus, "--index", tmp_path / "i")
        assert done.exit_code == 0, done.output
        return [line for line in done.stdout.splitlines() if line.startswith("replaces")]

    assert build(30, 4) == []
    assert build(30, 4) == []
    replaces = "replaces generation 1 of 30 documents, k = 4; gaussearch rollback 1 goes back to it"
    assert build(1200, 4) == [replaces]
    for row in range(2):
        assert run("delete", "--index", tmp_path / "i", "--ids", f"d{row}").exit_code == 0
    assert build(1200, 4) == [
        "replaces generation 4 of 1,198 documents, k = 4, and 2 changes made to it since it was built; gaussearch "
        "rollback 4 goes back to it"
    ]
    assert run("delete", "--index", tmp_path / "i", "--ids", "d0").exit_code == 0
    (replaced,) = build(20, 5)
    assert "generation 6 of 1,199 documents, k = 4, and 1 change made to it since" in replaced
    assert run("rollback", 6, "--index", tmp_path / "i").exit_code == 0
    assert IndexDirectory(tmp_path / "i").manifest().k == 4
    # What is damaged is replaced, too, and cannot be told.
    IndexDirectory(tmp_path / "i").current_file.write_text("nonsense")
    assert build(21, 5) == []


def test_verify_names_what_is_damaged(run: Run, make_index: MakeIndex) -> None:
    directory = make_index(random_gaussians(9, 2))
    damaged = directory.segments / directory.manifest().segments[0].id / "gaussians.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x55")
    found = run("verify", "--index", directory.path)
    assert found.exit_code == 1
    assert str(damaged) in found.stderr
    assert len(found.stderr.splitlines()) == 1


@pytest.mark.parametrize("option", ["--index", "--url"])
def test_a_trec_run_is_what_the_searcher_finds(
    run: Run,
    queries: Path,
    listen: Callable[..., int],
    option: str,
    make_index: MakeIndex,
) -> None:
    directory = make_index(random_gaussians(40, 5), [f"d{row}" for row in range(40)])
    target: object = directory.path
    if option == "--url":
        port = listen(create_app(ServiceSettings(index=directory.path, api_key="sesame")))  # type: ignore[arg-type]
        target = f"http://127.0.0.1:{port}"
    result = run(
        *("search", "--queries", queries, option, target, "--format", "trec", "--top-k", 4),
        env={"GAUSSEARCH_API_KEY": "sesame"},
    )
    assert result.exit_code == 0, result.output
    rows = [line.split(" ") for line in result.stdout.splitlines()]
    rankings = LocalSearcher(directory).search(QUERIES, 4)
    assert rows == [
        [query, "Q0", document, str(rank), repr(score), "gaussearch"]
        for query, ranking in zip(("q1", "q2", "q3"), rankings, strict=True)
        for rank, (document, score) in enumerate(zip(ranking.ids, ranking.scores.tolist(), strict=True), start=1)
    ]
    assert all(float(row[4]) <= 0 for row in rows)


def test_jsonl_is_one_object_a_query_and_the_same_from_a_service(
    run: Run, served: Served, queries: Path, listen: Callable[..., int]
) -> None:
    port = listen(create_app(ServiceSettings(index=served.directory.path)))
    options = ("search", "--queries", queries, "--format", "jsonl", "--top-k", 60)
    local = run(*options, "--index", served.directory.path)
    remote = run(*options, "--url", f"http://127.0.0.1:{port}/")
    assert local.exit_code == 0, local.output
    assert local.stdout == remote.stdout
    found = [json.loads(line) for line in local.stdout.splitlines()]
    rankings = LocalSearcher(served.directory).search(QUERIES, 60)
    assert [line["query"] for line in found] == ["q1", "q2", "q3"]
    for line, ranking in zip(found, rankings, strict=True):
        assert [(r["id"], r["score"]) for r in line["results"]] == list(zip(ranking.ids, ranking.scores, strict=True))
        assert all(r["payload"] == {"text": f"text of {r['id']}"} for r in line["results"])


def test_an_approximate_index_is_searched_exactly_where_asked(
    run: Run, make_index: MakeIndex, queries: Path, listen: Callable[..., int]
) -> None:
    documents = random_gaussians(2000, 5, seed=3)
    directory = make_index(documents, kind="fastscan", code_bytes=1, candidates=12, target_recall=0.2)
    port = listen(create_app(ServiceSettings(index=directory.path)))
    exact = [ranking.ids for ranking in LocalSearcher(directory).search(QUERIES, 10, exact=True)]

    def ids(where: tuple[object, ...], *options: object) -> list[list[str]]:
        done = run("search", "--queries", queries, "--format", "jsonl", *where, *options)
        assert done.exit_code == 0, done.output
        return [[result["id"] for result in json.loads(line)["results"]] for line in done.stdout.splitlines()]

    for where in (("--index", directory.path), ("--url", f"http://127.0.0.1:{port}")):
        assert ids(where, "--exact") == ids(where, "--candidates", 2000) == exact
        assert ids(where) != exact


def test_a_table_shows_text_as_it_is(run: Run, make_index: MakeIndex, queries: Path) -> None:
    directory = make_index(random_gaussians(2, 5), ["[red]a", "b:tent:"], text=["[/x] closes nothing", "second"])
    result = run("search", "--queries", queries, "--index", directory.path)
    assert result.exit_code == 0, result.output
    for part in ("q1: one", "q2: [two]", "[red]a", "b:tent:", "[/x] closes nothing", "second"):
        assert part in result.stdout


def test_a_table_shows_titles_beside_texts(run: Run, make_index: MakeIndex, queries: Path) -> None:
    titles = ["a horse", None, " ", f"[b] {'long ' * 20}end", "alone"]
    texts = ["an animal", "bread", "food", "a text", None]
    directory = make_index(random_gaussians(5, 5), title=titles, text=texts, year=[1990 + row for row in range(5)])
    result = run("search", "--queries", queries, "--index", directory.path)
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│ d" in line]
    shown = {cells[1]: cells[3:] for cells in rows[:5]}
    assert shown["d0"] == ["a horse", "an animal"]
    assert shown["d1"] == ["", "bread"]
    assert shown["d2"] == ["", "food"]
    assert shown["d3"] == ["[b] long long long long long …", "a text"]
    assert shown["d4"] == ["alone", '{"text": null, "year": 1994}']
    assert "title" in result.stdout
    # Of documents without titles there is no such column.
    plain_index = make_index(random_gaussians(2, 5), title=[7, 8], text=["one", "two"])
    assert "title" not in run("search", "--queries", queries, "--index", plain_index.path).stdout


def test_a_trec_run_refuses_an_id_with_a_space(run: Run, served: Served, queries: Path) -> None:
    result = run("search", "--queries", queries, "--index", served.directory.path, "--format", "trec", "--top-k", 60)
    assert result.exit_code == 1
    assert "'naïve 雪' has white space" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["search", "--queries", "{queries}"], 2, "give either --index or --url"),
        (["search", "--queries", "{queries}", "--index", "x", "--url", "y"], 2, "give either --index or --url"),
        (["search", "--queries", "{queries}", "--index", "{nowhere}"], 1, "no index in"),
        (["search", "--queries", "{nowhere}", "--index", "{index}"], 1, "nowhere"),
        (["search", "--queries", "{queries}", "--url", "http://127.0.0.1:9"], 1, "does not answer"),
        (["search", "--queries", "{queries}", "--url", "127.0.0.1:9"], 1, "does not answer"),
        (["search", "--queries", "{queries}", "--url", "http://127.0.0.1:port"], 1, "does not answer"),
        (["search", "--queries", "{queries}", "--index", "{index}", "--top-k", "0"], 2, "--top-k"),
        (["search", "--queries", "{queries}", "--index", "{index}", "--format", "xml"], 2, "--format"),
        (["search", "--queries", "{queries}", "--index", "{index}", "--device", "tpu"], 1, "tpu"),
        (["inspect", "--index", "{nowhere}"], 1, "gaussearch build"),
        (["verify", "--index", "{nowhere}"], 1, "gaussearch build"),
        (["inspect"], 2, "--index"),
        (["build", "{queries}"], 2, "--index"),
        (["build", "--index", "{nowhere}"], 2, "SOURCES"),
        (["build", "{nowhere}", "--index", "{nowhere}"], 1, "nowhere"),
        (["build", "{queries}", "--index", "{nowhere}", "--segment-docs", "0"], 2, "--segment-docs"),
        (["build", "{queries}", "--index", "{nowhere}", "--encoding", "zip"], 2, "--encoding"),
        (["serve"], 2, "--index"),
        (["serve", "--index", "{index}", "--port", "65536"], 2, "--port"),
        (["serve", "--index", "{index}", "--workers", "two"], 2, "--workers"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_mistakes_end_with_their_status_and_a_message(
    run: Run, served: Served, queries: Path, tmp_path: Path, arguments: Sequence[str], status: int, message: str
) -> None:
    names = {"queries": queries, "index": served.directory.path, "nowhere": tmp_path / "nowhere"}
    result = run(*(argument.format(**names) for argument in arguments))
    assert result.exit_code == status, result.output
    assert message in plain(result.stderr)
    assert "Traceback" not in result.output


@pytest.fixture
def impostor() -> Iterator[str]:
    """The address of a web server that is something else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>It works!</html>")

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_another_kind_of_server_is_recognised(run: Run, queries: Path, impostor: str) -> None:
    result = run("search", "--queries", queries, "--url", impostor)
    assert result.exit_code == 1
    assert "is not a gaussearch service" in result.stderr


def test_what_a_service_refuses_is_shown(run: Run, served: Served, queries: Path, listen: Callable[..., int]) -> None:
    port = listen(create_app(ServiceSettings(index=served.directory.path, max_top_k=5)))
    result = run("search", "--queries", queries, "--url", f"http://127.0.0.1:{port}")
    assert result.exit_code == 1
    assert "422: top_k is 10; the limit is 5" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_ends_with_130_and_goes_on_from_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    # A process that a shell has started in the background begins with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(30, 4))
    assert run("build", corpus, "--index", tmp_path / "i").exit_code == 0
    write_corpus(corpus, random_gaussians(40, 4, seed=5))

    class Interrupting(LineProgress):
        def phase(self, name: str, total: int | None) -> None:
            if name == "encoding":
                signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(cli, "progress_for", Interrupting)
        stopped = run("build", corpus, "--index", tmp_path / "i")
    signal.signal(signal.SIGINT, before)
    assert stopped.exit_code == 130
    assert "interrupted" in stopped.stderr
    assert "Traceback" not in stopped.output
    assert IndexDirectory(tmp_path / "i").verify().documents == 30
    finished = run("build", corpus, "--index", tmp_path / "i")
    assert finished.exit_code == 0
    assert "resumed" in finished.output
    assert IndexDirectory(tmp_path / "i").verify().documents == 40


def test_the_script_builds_like_the_command(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(10, 4))
    script = Path(__file__).parent.parent / "scripts" / "build_index.py"
    options = [str(corpus), "--index", str(tmp_path / "script"), "--encoding", "full", "--segment-docs", "4"]
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    assert run("build", corpus, "--index", tmp_path / "command", *options[3:]).exit_code == 0
    one, two = (IndexDirectory(tmp_path / name).verify() for name in ("script", "command"))
    assert one.model_dump(exclude={"created_at"}) == two.model_dump(exclude={"created_at"})
