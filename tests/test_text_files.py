"""`gaussearch encode`: what it writes, how it goes on where it was stopped, and what it refuses."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ir_datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from typer.testing import CliRunner, Result

from index import IndexDirectory, LocalSearcher, add_documents, build_index
from index.build_options import EncodeOptions
from index.errors import BuildError, DuplicateIdError, ModelError, ModelMismatchError, SourceError
from index.formats import model_of
from index.text import Role
from index.text.files import encode_texts
from service import cli
from tests.conftest import random_gaussians, write_corpus
from tests.text_models import head_model
from tests.word_encoder import WordEncoder

ANY = EncodeOptions(model="given")


def texts(path: Path, count: int = 50, **more: Any) -> Path:
    rows = ({"_id": f"d{row}", "text": f"text {row}", **more} for row in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.text.files.PART_ROWS", 8)
    monkeypatch.setattr("index.sources.TEXT_BATCH_ROWS", 3)


def read(path: Path) -> dict[str, Any]:
    table = pq.read_table(path)
    return {name: table[name].to_pylist() for name in table.column_names}


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if ".parts" in path.name or path.name.endswith(".tmp"))


@pytest.mark.usefixtures("small_parts")
def test_the_output_holds_gaussians_texts_and_the_model(tmp_path: Path) -> None:
    encoder = WordEncoder()
    summary = encode_texts(texts(tmp_path / "a.jsonl", year=1990), tmp_path / "a.parquet", ANY, encoder=encoder)
    assert (summary.rows, summary.resumed, summary.rejected, summary.model) == (50, 0, 0, encoder.record)
    found = read(tmp_path / "a.parquet")
    expected = encoder.encode([f"text {row}" for row in range(50)], Role.DOCUMENT)
    assert found["id"] == [f"d{row}" for row in range(50)]
    assert found["text"][7] == "text 7"
    assert found["year"] == [1990] * 50
    assert torch.equal(torch.tensor(found["mean"]), expected.means)
    assert torch.equal(torch.tensor(found["variance"]), expected.variances)
    assert pq.read_schema(tmp_path / "a.parquet").field("mean").type == pa.list_(pa.float32(), 5)
    assert model_of(tmp_path / "a.parquet") == encoder.record
    assert left_behind(tmp_path) == []
    assert build_index([tmp_path / "a.parquet"], tmp_path / "index").manifest.model == encoder.record


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("left", [0, 1, 8, 9, 30, 49])
def test_what_was_stopped_goes_on_and_makes_the_same(left: int, tmp_path: Path) -> None:
    source, options = texts(tmp_path / "a.jsonl"), EncodeOptions(model="given", role=Role.QUERY)
    encode_texts(source, tmp_path / "whole.parquet", options, encoder=WordEncoder())
    encoder = WordEncoder()
    encoder.left = left
    with pytest.raises(KeyboardInterrupt):
        encode_texts(source, tmp_path / "a.parquet", options, encoder=encoder)
    assert not (tmp_path / "a.parquet").exists()
    encoder.left, encoder.read = None, []
    summary = encode_texts(source, tmp_path / "a.parquet", options, encoder=encoder)
    # The reader is a batch ahead of what is written.
    assert left - 8 - 2 * 3 <= summary.resumed <= left
    assert len(encoder.read) == 50 - summary.resumed
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert left_behind(tmp_path) == []


@pytest.mark.usefixtures("small_parts")
def test_parts_of_something_else_or_damaged_ones_are_made_again(tmp_path: Path) -> None:
    source, output = texts(tmp_path / "a.jsonl"), tmp_path / "a.parquet"

    def interrupted() -> list[Path]:
        encoder = WordEncoder()
        encoder.left = 40
        with pytest.raises(KeyboardInterrupt):
            encode_texts(source, output, ANY, encoder=encoder)
        return sorted((tmp_path / ".a.parquet.parts").glob("*.parquet"))

    parts = interrupted()
    assert len(parts) >= 3
    parts[1].write_bytes(parts[1].read_bytes()[:100])
    assert encode_texts(source, output, ANY, encoder=WordEncoder()).resumed == 8
    interrupted()
    assert encode_texts(source, output, ANY, encoder=WordEncoder("other")).resumed == 0
    interrupted()
    restarted = EncodeOptions(model="given", restart=True)
    assert encode_texts(source, output, restarted, encoder=WordEncoder()).resumed == 0
    interrupted()
    texts(source, 51)
    assert encode_texts(source, output, ANY, encoder=WordEncoder()).resumed == 0
    assert left_behind(tmp_path) == []


@pytest.mark.usefixtures("small_parts")
def test_rows_left_out_are_listed_once_however_often_it_is_stopped(tmp_path: Path) -> None:
    rows = [{"_id": str(row), "text": "" if row % 5 == 0 else "a text"} for row in range(60)]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = EncodeOptions(model="given", on_error="skip")
    for left in (10, 15, 20):
        encoder = WordEncoder()
        encoder.left = left
        with pytest.raises(KeyboardInterrupt):
            encode_texts(source, tmp_path / "a.parquet", options, encoder=encoder)
    summary = encode_texts(source, tmp_path / "a.parquet", options, encoder=WordEncoder())
    assert (summary.rows, summary.rejected) == (48, 12)
    listed = [json.loads(line)["row"] for line in (tmp_path / "a.parquet.rejected.jsonl").read_text().splitlines()]
    assert listed == list(range(1, 61, 5))
    with pytest.raises(SourceError, match=r"line 1, column 'text': it must not be null or empty"):
        encode_texts(source, tmp_path / "a.parquet", ANY, encoder=WordEncoder())


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"_id": "d", "text": 7}, r"a\.jsonl line 51, column 'text': it must be a string"),
        ({"_id": "d", "text": " "}, r"a\.jsonl line 51, column 'text': it must not be null or empty"),
        ({"_id": "d" * 513, "text": "a"}, r"a\.jsonl line 51, column 'id': it has 513 bytes"),
        ({"text": "a"}, r"a\.jsonl line 51, column 'id': it is missing"),
        ({"_id": "d3", "text": "a"}, r"ids must be unique, and 1 are not: 'd3' at .*a\.jsonl line 4 and .*line 51\."),
    ],
)
@pytest.mark.parametrize("command", ["encode", "build", "add"])
def test_what_is_wrong_with_the_last_row_is_found_before_the_first_is_encoded(
    command: str, row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source, encoder, index = texts(tmp_path / "a.jsonl"), WordEncoder(), tmp_path / "index"
    if command == "add":
        build_index([texts(tmp_path / "b.jsonl")], index, encoder=encoder)
        encoder.read.clear()
    with source.open("a") as file:
        file.write(json.dumps(row) + "\n")
    commands: dict[str, Callable[[], object]] = {
        "encode": lambda: encode_texts(source, tmp_path / "a.parquet", ANY, encoder=encoder),
        "build": lambda: build_index([source], index, encoder=encoder),
        "add": lambda: add_documents([source], index, encoder=encoder),
    }
    with pytest.raises(SourceError, match=message):
        commands[command]()
    assert encoder.read == []
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_an_id_that_is_there_twice_is_none_whatever_is_skipped(on_error: str, role: Role, tmp_path: Path) -> None:
    """Of two files, too; and of a row that is left out it is nobody's."""
    (tmp_path / "texts").mkdir()
    one, two = (texts(tmp_path / "texts" / name, 3) for name in ("a.jsonl", "b.jsonl"))
    options = EncodeOptions.model_validate({"model": "given", "on_error": on_error, "role": role})
    encoder, output = WordEncoder(), tmp_path / "a.parquet"
    with pytest.raises(DuplicateIdError, match=rf"and 3 are not: 'd0' at {one} line 1 and {two} line 1; 'd1' at"):
        encode_texts(tmp_path / "texts", output, options, encoder=encoder)
    assert encoder.read == []
    assert not output.exists()
    texts(two, 3, title=7)
    if on_error == "skip":
        assert encode_texts(tmp_path / "texts", output, options, encoder=encoder).rejected == 3
        assert read(output)["id"] == ["d0", "d1", "d2"]
        assert len((tmp_path / "a.parquet.rejected.jsonl").read_text().splitlines()) == 3


@pytest.mark.usefixtures("small_parts")
def test_columns_become_of_a_type_that_holds_all(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    rows: list[dict[str, Any]] = [{"_id": str(row), "text": "a"} for row in range(30)]
    for row in range(10, 30):
        rows[row]["n"] = row if row < 20 else row / 2
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encode_texts(source, tmp_path / "a.parquet", ANY, encoder=WordEncoder())
    assert read(tmp_path / "a.parquet")["n"] == [row.get("n") for row in rows]
    del rows[27]["n"], rows[28]["n"]
    rows[29]["n"] = "words"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SourceError, match="have types that do not go together"):
        encode_texts(source, tmp_path / "a.parquet", ANY, encoder=WordEncoder())
    assert len(read(tmp_path / "a.parquet")["id"]) == 30


def test_what_cannot_be_an_output(tmp_path: Path) -> None:
    source = texts(tmp_path / "a.jsonl")
    for output in ("a.csv", "nowhere/a.parquet", "folder.parquet"):
        (tmp_path / "folder.parquet").mkdir(exist_ok=True)
        with pytest.raises(BuildError, match=r"the output is a file of a folder that exists, and its name ends in"):
            encode_texts(source, tmp_path / output, ANY, encoder=WordEncoder())
    with pytest.raises(SourceError, match="there is no such file"):
        encode_texts(tmp_path / "none.jsonl", tmp_path / "b.parquet", ANY, encoder=WordEncoder())
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(SourceError, match=r"there are no documents in .*empty\.jsonl"):
        encode_texts(tmp_path / "empty.jsonl", tmp_path / "b.parquet", ANY, encoder=WordEncoder())
    with pytest.raises(ModelError, match="nowhere: there is no such folder"):
        encode_texts(source, tmp_path / "b.parquet", EncodeOptions(model="nowhere"))
    assert left_behind(tmp_path) == []


def test_a_link_that_is_named_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "a.parquet").symlink_to(tmp_path / "there" / "b.parquet")
    encode_texts(texts(tmp_path / "a.jsonl"), tmp_path / "a.parquet", ANY, encoder=WordEncoder())
    assert (tmp_path / "a.parquet").is_symlink()
    assert len(read(tmp_path / "there" / "b.parquet")["id"]) == 50


def test_one_process_at_a_time_encodes_into_a_file(tmp_path: Path) -> None:
    source = texts(tmp_path / "a.jsonl")
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with FileLock(tmp_path / ".a.parquet.lock"):
            held.set()
            let_go.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    try:
        with pytest.raises(BuildError, match="another process is encoding into it"):
            encode_texts(source, tmp_path / "a.parquet", ANY, encoder=WordEncoder())
    finally:
        let_go.set()
        other.join()
    assert encode_texts(source, tmp_path / "a.parquet", ANY, encoder=WordEncoder()).rows == 50


@pytest.fixture
def data_set(tmp_path: Path) -> Iterator[str]:
    """The name of a data set of ir_datasets whose data are here."""
    docs, queries = tmp_path / "docs.tsv", tmp_path / "queries.tsv"
    docs.write_text("d1\tbread is food\nd2\ta horse\n")
    queries.write_text("q1\tbaked\n")
    made = ir_datasets.create_dataset(docs_tsv=str(docs), queries_tsv=str(queries))
    ir_datasets.registry.register("of-this-test", made)
    yield "of-this-test"
    del ir_datasets.registry._registered["of-this-test"]


def test_data_sets_of_ir_datasets_that_are_here(data_set: str, tmp_path: Path) -> None:
    encode_texts(f"ir_datasets:{data_set}", tmp_path / "docs.parquet", ANY, encoder=WordEncoder())
    found = read(tmp_path / "docs.parquet")
    assert (found["id"], found["text"]) == (["d1", "d2"], ["bread is food", "a horse"])
    options = EncodeOptions(model="given", role=Role.QUERY)
    encode_texts(f"ir_datasets:{data_set}", tmp_path / "queries.parquet", options, encoder=WordEncoder())
    assert read(tmp_path / "queries.parquet")["text"] == ["baked"]
    assert left_behind(tmp_path) == []


def test_nothing_is_fetched_for_ir_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IR_DATASETS_TMP", str(tmp_path / "tmp"))
    with pytest.raises(SourceError, match="ir_datasets:vaswani: its data are not on this machine"):
        encode_texts("ir_datasets:vaswani", tmp_path / "a.parquet", ANY, encoder=WordEncoder())
    with pytest.raises(SourceError, match="ir_datasets knows no data set of this name"):
        encode_texts("ir_datasets:no-such", tmp_path / "a.parquet", ANY, encoder=WordEncoder())
    assert left_behind(tmp_path) == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return head_model(tmp_path_factory.mktemp("models") / "small")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_from_texts_to_ranked_texts_on_the_command_line(model: Path, tmp_path: Path) -> None:
    docs, queries = tmp_path / "docs.tsv", tmp_path / "queries.jsonl"
    docs.write_text("id\ttitle\ttext\nd1\thorse\tmetal held in the mouth\nd2\t\tbread is food baked from flour\n")
    queries.write_text('{"_id": "q1", "text": "bread is food baked from flour"}\n')
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td2\t1\n")
    for index, arguments in {
        "one": ("build", docs, "--model", model),
        "two": ("build", tmp_path / "docs.parquet"),
    }.items():
        if index == "two":
            encoded = run("encode", docs, tmp_path / "docs.parquet", "--model", model, "--model-precision", "float32")
            assert encoded.exit_code == 0, encoded.output
            assert "small (head)" in encoded.output
        built = run(*arguments, "--index", tmp_path / index)
        assert built.exit_code == 0, built.output
        assert "small (head)" in run("inspect", "--index", tmp_path / index).output
    searcher = LocalSearcher(IndexDirectory(tmp_path / "two"))
    assert searcher.payloads(np.array([0])) == [{"title": "horse", "text": "metal held in the mouth"}]
    found = run("search", "--index", tmp_path / "one", "--model", model, "--text", "horse mouth", "--format", "jsonl")
    assert found.exit_code == 0, found.output
    assert {result["id"] for result in json.loads(found.stdout)["results"]} == {"d1", "d2"}
    evaluated = run(
        *("evaluate", "--index", tmp_path / "two", "--model", model, "--queries", queries),
        *("--qrels", tmp_path / "qrels.tsv", "--format", "json"),
    )
    assert evaluated.exit_code == 0, evaluated.output
    assert json.loads(evaluated.stdout)["queries"]["evaluated"] == 1


def test_an_interrupted_run_says_what_is_kept(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("service.encode_command.encode_texts", interrupted)
    stopped = run("encode", texts(tmp_path / "a.jsonl", 3), tmp_path / "a.parquet", "--model", model)
    said = "what has been encoded is kept, all but the last 2,048 rows, and the same command goes on from there"
    assert (stopped.exit_code, stopped.stderr) == (130, f"gaussearch: interrupted; {said}\n")


def test_the_command_says_where_rows_are_listed_that_it_left_out(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"_id": "a", "text": "bread"}\n{"_id": "b", "text": ""}\n')
    for command in (("encode", tmp_path / "a.jsonl", tmp_path / "a.parquet"), ("build", tmp_path / "a.jsonl")):
        listed = tmp_path / ("a.parquet.rejected.jsonl" if command[0] == "encode" else "i/rejected.jsonl")
        index = () if command[0] == "encode" else ("--index", tmp_path / "i")
        done = run(*command, *index, "--model", model, "--on-error", "skip")
        assert done.exit_code == 0, done.output
        assert f"1, listed in {listed}" in done.stdout
        assert listed.is_file()
    again = run("build", tmp_path / "a.jsonl", *index, "--model", model, "--on-error", "skip")
    assert "already up to date" in again.stdout
    assert "listed in" not in again.stdout


def test_another_model_than_that_of_the_index_is_refused(model: Path, tmp_path: Path) -> None:
    source, other = texts(tmp_path / "a.jsonl", 3), head_model(tmp_path / "other", seed=1)
    assert run("build", source, "--index", tmp_path / "index", "--model", model).exit_code == 0
    for arguments in (
        ("search", "--model", other, "--text", "bread"),
        ("search", "--model", other, "--queries", source),
        ("add", source, "--model", other),
    ):
        refused = run(*arguments, "--index", tmp_path / "index")
        assert refused.exit_code == 1
        assert ModelMismatchError.code in refused.output
    assert "name that of the index with --model" in run("search", "--text", "a", "--index", tmp_path / "index").output
    loose = write_corpus(tmp_path / "loose.parquet", random_gaussians(2, 6))
    said = run("search", "--queries", loose, "--index", tmp_path / "index")
    assert said.exit_code == 0
    assert "do not say which model made them; the index is of 'small'" in said.output
    assert "--text is empty" in run("search", "--text", " ", "--index", tmp_path / "index").output
    for both in ((), ("--text", "a", "--queries", source)):
        assert "give either --queries or --text" in run("search", *both, "--index", tmp_path / "index").output
