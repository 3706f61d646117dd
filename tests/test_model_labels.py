"""What says which model made Gaussians, and what is refused where that does not go together or is not known."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from index import BuildOptions, CompactOptions, IndexDirectory, add_documents, build_index, compact_index
from index.build_options import EncodeOptions
from index.encoding import Encoding
from index.errors import ModelMismatchError, SourceError
from index.formats import model_of, role_of
from index.formats.columnar import MODEL_KEY, ROLE_KEY
from index.manifest import IndexKind
from index.records import ModelRecord
from index.rows import Columns, VarianceAs
from index.sources import Corpus
from index.staging import BuildPlan
from index.text import Role, TextPrecision
from index.text.files import encode_texts
from index.text.matching import require_model
from index.text.rows import TextSource
from service import cli
from service.runs import Asked, LocalRunner, RemoteError, RemoteRunner, in_words, read_queries, search_batch
from tests.conftest import random_gaussians, write_corpus
from tests.text_models import head_model
from tests.word_encoder import WordEncoder

ASKED = Asked(3, candidates=None, nprobe=None, exact=False)
FITTED = BuildOptions(kind=IndexKind.FASTSCAN, code_bytes=2, candidates=40)


def texts(path: Path, count: int = 50) -> Path:
    rows = ({"_id": f"{path.stem}{row}", "text": f"text {row}"} for row in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def encoded(path: Path, role: Role, encoder: WordEncoder | None = None, count: int = 50) -> Path:
    source, options = texts(path.with_suffix(".jsonl"), count), EncodeOptions(model="given", role=role)
    encode_texts(source, path, options, encoder=encoder or WordEncoder())
    return path


@pytest.fixture
def silent(tmp_path: Path) -> Path:
    """An index of Gaussians of which nobody knows the model."""
    build_index([write_corpus(tmp_path / "loose.parquet", random_gaussians(20, 5))], tmp_path / "silent")
    return tmp_path / "silent"


def read(path: Path, encoder: WordEncoder | None = None) -> Any:
    source = None if encoder is None else TextSource(encoder, Role.QUERY)
    return next(read_queries(path, Columns(), VarianceAs.VARIANCE, source))


def test_texts_are_put_to_no_index_of_an_unknown_model(silent: Path, tmp_path: Path) -> None:
    source, encoder, runner = texts(tmp_path / "more.jsonl"), WordEncoder(), LocalRunner(silent, "cpu")
    for batch in (read(source, encoder), in_words(runner, "a text", TextSource(encoder, Role.QUERY))):
        with pytest.raises(ModelMismatchError, match="the index does not say which model its Gaussians are of"):
            search_batch(runner, batch, ASKED)
    with pytest.raises(ModelMismatchError, match=r"silent does not say which model .* or give Gaussians instead"):
        add_documents([source], silent, encoder=encoder)
    assert IndexDirectory(silent).manifest().generation == 1
    with pytest.raises(ModelMismatchError, match=r"or serve it without --model$"):
        require_model(None, encoder.record, "it", reads=True, otherwise="serve it without --model")


def test_gaussians_that_say_nothing_are_put_to_any_index(silent: Path, tmp_path: Path) -> None:
    loose = write_corpus(tmp_path / "more.parquet", random_gaussians(3, 5), ids=["a", "b", "c"])
    build_index([encoded(tmp_path / "docs.parquet", Role.DOCUMENT)], tmp_path / "known")
    for index in (silent, tmp_path / "known"):
        assert len(search_batch(LocalRunner(index, "cpu"), read(loose), ASKED)) == 3
        assert add_documents([loose], index).written == 3


def test_gaussians_that_say_nothing_are_added_with_a_warning_where_the_model_is_known(
    silent: Path, tmp_path: Path
) -> None:
    loose = write_corpus(tmp_path / "more.parquet", random_gaussians(3, 5), ids=["a", "b", "c"])
    documents = encoded(tmp_path / "docs.parquet", Role.DOCUMENT)
    build_index([documents], tmp_path / "known")
    warned = run("add", loose, "--index", tmp_path / "known")
    assert warned.exit_code == 0, warned.output
    assert "these Gaussians do not say which model made them; the index's documents are of 'words'" in warned.stderr
    for source, index in ((documents, tmp_path / "known"), (loose, silent)):
        added = run("add", source, "--index", index)
        assert added.exit_code == 0, added.output
        assert "which model made them" not in added.stderr


def test_files_say_in_which_role_texts_were_read(tmp_path: Path) -> None:
    queries, documents = (encoded(tmp_path / f"{role.value}.parquet", role) for role in Role)
    assert (role_of(queries), role_of(documents)) == (Role.QUERY, Role.DOCUMENT)
    refusal = r"query\.parquet: these are Gaussians of queries: encode them with --role document"
    with pytest.raises(SourceError, match=refusal):
        build_index([queries], tmp_path / "index")
    build_index([documents], tmp_path / "index")
    with pytest.raises(SourceError, match=refusal):
        add_documents([queries], tmp_path / "index")
    assert search_batch(LocalRunner(tmp_path / "index", "cpu"), read(queries), ASKED)
    with pytest.raises(SourceError, match=r"these are Gaussians of documents: encode them with --role query"):
        read(documents)
    with pytest.raises(SourceError, match=r"these are Gaussians of documents"):
        Corpus([documents]).of_queries(documents)
    Corpus([documents]).of_queries(queries)
    table = pq.read_table(queries)
    pq.write_table(table.replace_schema_metadata({ROLE_KEY: b"other"}), queries)
    with pytest.raises(SourceError, match=r"query\.parquet: what it says of the role of its Gaussians"):
        role_of(queries)
    # Texts of such a file are texts of any role.
    pq.write_table(table, queries)
    assert build_index([queries], tmp_path / "texts", encoder=WordEncoder("other")).manifest.model is not None


def test_a_label_of_other_dimensions_is_found_at_the_start(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "a.parquet", random_gaussians(5, 5))
    record = ModelRecord(name="x", encoder="head", k=9, fingerprint="0" * 64)
    pq.write_table(pq.read_table(path).replace_schema_metadata({MODEL_KEY: record.model_dump_json()}), path)
    assert model_of(path) == record
    with pytest.raises(
        SourceError, match=r"a\.parquet says .* of 'x', which makes such of 9 dimensions, and they have 5"
    ):
        build_index([path], tmp_path / "index")
    assert not list((tmp_path / "index").glob("segments/*"))


def test_queries_of_a_rebuild_are_of_the_model_of_the_index(tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index([texts(tmp_path / "docs.jsonl", 300)], index, FITTED, encoder=WordEncoder())
    other = encoded(tmp_path / "other.parquet", Role.QUERY, WordEncoder("other"))
    with pytest.raises(ModelMismatchError, match=r"index holds Gaussians of the model 'words'.* 'other'"):
        compact_index(index, CompactOptions(retrain=True, queries=other))
    (tmp_path / "lines.tsv").write_text("q1\ta text\n")
    for path in (texts(tmp_path / "words.jsonl"), tmp_path / "lines.tsv"):
        with pytest.raises(SourceError, match=r"these are texts: make Gaussians of them with gaussearch encode --role"):
            compact_index(index, CompactOptions(retrain=True, queries=path))
    with pytest.raises(SourceError, match="there is no such file"):
        compact_index(index, CompactOptions(retrain=True, queries=tmp_path / "none.parquet"))
    own = encoded(tmp_path / "own.parquet", Role.QUERY)
    rebuilt = compact_index(index, CompactOptions(retrain=True, queries=own))
    assert rebuilt.had_queries
    assert rebuilt.model == WordEncoder().record


def test_an_index_of_no_model_says_nothing_of_models(silent: Path, tmp_path: Path) -> None:
    directory = IndexDirectory(silent)
    assert b'"model"' not in (directory.manifests / "00000001.json").read_bytes()
    assert directory.verify().model is None
    build_index([texts(tmp_path / "a.jsonl")], tmp_path / "known", encoder=WordEncoder())
    assert b'"model"' in (IndexDirectory(tmp_path / "known").manifests / "00000001.json").read_bytes()


def test_a_build_in_another_precision_is_another(tmp_path: Path) -> None:
    source = texts(tmp_path / "a.jsonl")
    one, two = (BuildOptions(model_precision=each) for each in (TextPrecision.FLOAT32, TextPrecision.AUTO))
    assert not build_index([source], tmp_path / "index", one, encoder=WordEncoder()).up_to_date
    assert build_index([source], tmp_path / "index", one, encoder=WordEncoder()).up_to_date
    assert not build_index([source], tmp_path / "index", two, encoder=WordEncoder()).up_to_date
    # Where there is no model, nothing computes in any.
    loose = write_corpus(tmp_path / "loose.parquet", random_gaussians(20, 5))
    build_index([loose], tmp_path / "loose", one)
    assert build_index([loose], tmp_path / "loose", two).up_to_date


def test_plans_without_a_model_are_what_they_were() -> None:
    plan = BuildPlan(corpus="c", encoding=Encoding.SIMPLIFIED, kind=IndexKind.FLAT, segment_docs=5, on_error="stop")
    assert plan.id == "39a2e55bccb7"


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "200", **environment})


def test_the_variable_of_a_service_makes_no_texts_of_what_is_built(tmp_path: Path) -> None:
    loose, model = write_corpus(tmp_path / "loose.parquet", random_gaussians(20, 5)), str(tmp_path / "none")
    for command in ("build", "add"):
        done = run(command, loose, "--index", tmp_path / "index", GAUSSEARCH_MODEL=model)
        assert done.exit_code == 0, done.output
        assert "GAUSSEARCH_MODEL]" not in run(command, "--help").output.replace(" ", "")
    refused = run("encode", loose, tmp_path / "out.parquet", GAUSSEARCH_MODEL=model)
    assert "there is no such folder" in refused.output


def test_searches_on_the_command_line_are_of_a_known_model(silent: Path, tmp_path: Path) -> None:
    model, queries = head_model(tmp_path / "small"), texts(tmp_path / "queries.jsonl", 3)
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nqueries1\td2\t1\n")
    for arguments in (
        ("search", "--text", "bread"),
        ("search", "--queries", queries),
        ("evaluate", "--queries", queries, "--qrels", tmp_path / "qrels.tsv"),
    ):
        refused = run(*arguments, "--model", model, "--index", silent)
        assert refused.exit_code == 1
        assert ModelMismatchError.code in refused.output


def test_a_model_of_a_newer_service_is_told_as_an_error_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = {"name": "x", "encoder": "of tomorrow", "k": 3, "fingerprint": "0" * 64}
    monkeypatch.setattr(RemoteRunner, "_ask", lambda *_: newer)
    with pytest.raises(RemoteError, match="names a model that this release does not know: Input should be 'mrl'"):
        _ = RemoteRunner("http://there", None).model
