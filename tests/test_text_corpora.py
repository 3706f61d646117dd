"""Corpora of texts: how files are read, what becomes of rows without a text, builds and additions with a model."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ir_datasets.util.download import (
    Download,
    GoogleCloudBucketStream,
    GoogleDriveDownload,
    LocalDownload,
    RequestsDownload,
)

from index import AddOptions, BuildOptions, Corpus, IndexDirectory, LocalSearcher, add_documents, build_index
from index.build_options import EncodeOptions
from index.errors import ModelMismatchError, SourceError
from index.formats.columnar import MODEL_KEY
from index.manifest import IndexKind
from index.rejected_rows import RejectedRows
from index.rows import TextColumns
from index.text import Role, TextEncoder
from index.text.files import encode_texts
from index.text.ir_dataset import export_texts
from index.text.rows import TextSource
from tests.conftest import random_gaussians, write_corpus
from tests.word_encoder import WordEncoder

ROWS: list[dict[str, Any]] = [
    {"_id": "d1", "title": "horse", "text": "an animal", "year": 1990},
    {"_id": "d2", "title": "", "text": "bread", "year": 1991},
    {"_id": "d3", "title": None, "text": "naïve 雪", "year": 1992},
]
READ = ["horse an animal", "bread", "naïve 雪"]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The rows in the format of the file's name."""
    if ".jsonl" in path.name:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    elif path.suffix == ".tsv":
        lines = ["\t".join(rows[0]), *("\t".join(str(value or "") for value in row.values()) for row in rows)]
        path.write_text("\ufeff" + "\r\n".join(lines) + "\n\n")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        table = pa.Table.from_pylist(list(rows))
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return path


def corpus(path: Path, encoder: WordEncoder | None = None, **options: Any) -> Corpus:
    columns = options.pop("columns", TextColumns())
    return Corpus([path], texts=TextSource(encoder or WordEncoder(), columns=columns), **options)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.tsv", "a.parquet", "a.arrow"])
def test_every_format_of_texts_reads_the_same(name: str, tmp_path: Path) -> None:
    encoder = WordEncoder()
    (batch,) = corpus(write(tmp_path / name, ROWS), encoder).batches()
    assert batch.ids.to_pylist() == ["d1", "d2", "d3"]
    expected = encoder.encode(READ, Role.DOCUMENT)
    assert torch.equal(batch.gaussians.means, expected.means)
    assert torch.equal(batch.gaussians.variances, expected.variances)
    assert batch.payload is not None
    assert batch.payload.column_names == ["title", "text", "year"]
    assert batch.payload["text"].to_pylist() == [row["text"] for row in ROWS]
    assert encoder.read[:3] == [(text, Role.DOCUMENT) for text in READ]


def test_lines_without_names_are_an_id_and_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('7\ta "quoted" text\n8\tanother\n')
    (batch,) = corpus(tmp_path / "a.tsv").batches()
    assert batch.ids.to_pylist() == ["7", "8"]
    assert batch.payload is not None
    assert batch.payload.to_pydict() == {"text": ['a "quoted" text', "another"]}
    assert batch.rows.tolist() == [1, 2]
    (tmp_path / "a.tsv").write_text("7\ta\tb\n")
    with pytest.raises(SourceError, match=r"a\.tsv line 1: it has 3 fields; without a first line that names"):
        list(corpus(tmp_path / "a.tsv").batches())
    (tmp_path / "a.tsv").write_text("")
    assert list(corpus(tmp_path / "a.tsv").batches()) == []


def test_other_columns_may_hold_the_texts(tmp_path: Path) -> None:
    rows = [{"docno": 7, "body": "bread", "head": "food", "title": "no part of it"}]
    columns = TextColumns("docno", "body", "head")
    for name in ("a.jsonl", "a.parquet"):
        encoder = WordEncoder()
        (batch,) = corpus(write(tmp_path / name, rows), encoder, columns=columns).batches()
        assert batch.ids.to_pylist() == ["7"]
        assert encoder.read == [("food bread", Role.DOCUMENT)]


BAD = [
    ("a.jsonl", b'{"_id": "a"}', "no column 'text'; it has '_id'"),
    ("a.jsonl", b'{"_id": "a", "text": 7}', "line 1, column 'text': it must be a string"),
    ("a.jsonl", b'{"_id": "a", "text": null}', "line 1, column 'text': it must not be null or empty"),
    ("a.jsonl", b'{"_id": "a", "text": " \\n"}', "line 1, column 'text': it must not be null or empty"),
    ("a.jsonl", b'{"text": "a"}', "no column 'id'; it has 'text'"),
    ("a.jsonl", b'{"_id": "", "text": "a"}', "line 1, column 'id': it must not be empty"),
    ("a.jsonl", b'{"_id": "a", "text": "b", "mean": 1}', "a column 'mean', which is what the model's Gaussians"),
    ("a.jsonl", b'{"_id": "a", "text": "b", "title": 1}', "line 1, column 'title': it must be a string"),
    ("a.jsonl", b'{"_id": "a", "text": "", "title": " "}', "line 1, column 'text': it must not be null or empty"),
    ("a.tsv", b"id\ttext\na\n", "line 2: it has 1 fields; the file has 2"),
    ("a.tsv", b"id\ttext\na\t\xff\n", "line 2: it is not UTF-8"),
    ("a.tsv", b"a\t\xff\nb\ttext\n", "line 1: it is not UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_a_row_without_a_text_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        list(corpus(tmp_path / name).batches())


def test_rows_without_a_text_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"_id": str(row), "text": "" if row % 3 == 1 else f"text {row}"} for row in range(10)]
    for name in ("a.jsonl", "a.tsv", "a.parquet"):
        path = write(tmp_path / name, rows)
        with RejectedRows(tmp_path / f"{name}.rejected") as rejected:
            batches = list(corpus(path, rejected=rejected).batches(batch_rows=4))
        assert rejected.count == 3
        kept = [identifier for batch in batches for identifier in batch.ids.to_pylist()]
        assert kept == [str(row) for row in range(10) if row % 3 != 1]
        # From any place on it goes on with the same rows.
        with RejectedRows(tmp_path / "again") as listed:
            rest = list(corpus(path, rejected=listed).batches(start=(0, batches[0].next_row)))
        assert [identifier for batch in rest for identifier in batch.ids.to_pylist()] == kept[len(batches[0].ids) :]


def left_out(path: Path, encoder: TextEncoder | None = None, **options: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """The ids of the rows that are kept, and what is listed of the others."""
    listed = path.with_name("rejected.jsonl")
    with RejectedRows(listed) as rejected:
        source = TextSource(encoder or WordEncoder())
        batches = list(Corpus([path], texts=source, rejected=rejected).batches(**options))
    kept = [identifier for batch in batches for identifier in batch.ids.to_pylist()]
    return kept, [json.loads(line) for line in listed.read_text().splitlines()]


@pytest.mark.parametrize("name", ["a.jsonl", "a.tsv", "a.parquet"])
def test_a_title_alone_is_a_text(name: str, tmp_path: Path) -> None:
    encoder = WordEncoder()
    rows = [{"_id": "a", "title": "horse", "text": ""}, {"_id": "b", "title": " ", "text": "bread"}]
    (batch,) = corpus(write(tmp_path / name, rows), encoder).batches()
    assert [text for text, _ in encoder.read] == ["horse", "bread"]
    assert batch.ids.to_pylist() == ["a", "b"]
    assert batch.payload is not None
    assert batch.payload["text"].to_pylist() == ["", "bread"]


def test_a_row_whose_title_is_no_text_is_left_out(tmp_path: Path) -> None:
    rows = [{"_id": str(row), "title": title, "text": "bread"} for row, title in enumerate(["a", 3, None, ["b"]])]
    kept, rejected = left_out(write(tmp_path / "a.jsonl", rows))
    assert kept == ["0", "2"]
    assert [row["reason"] for row in rejected] == ["it must be a string"] * 2


def test_a_first_line_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"1\t\xff\xfe\n2\tbread\n")
    kept, rejected = left_out(tmp_path / "a.tsv")
    assert kept == ["2"]
    assert [row["reason"] for row in rejected] == ["it is not UTF-8"]


@pytest.mark.parametrize("name", ["a.arrow", "a.parquet"])
def test_views_of_strings_are_texts(name: str, tmp_path: Path) -> None:
    texts = ["bread", "", "a text that is longer than twelve bytes"]
    columns = {"_id": ["a", "b", "c"], "text": texts, "title": [None, None, "food"]}
    table = pa.table({name: pa.array(values, pa.string_view()) for name, values in columns.items()})
    path = tmp_path / name
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    encoder = WordEncoder()
    kept, rejected = left_out(path, encoder)
    assert (kept, len(rejected)) == (["a", "c"], 1)
    assert [text for text, _ in encoder.read] == [texts[0], f"food {texts[2]}"]


def test_texts_of_which_a_model_makes_no_gaussian_are_left_out(tmp_path: Path) -> None:
    poison = {4, 5, 11, 30}
    rows = [{"_id": f"d{row}", "text": WordEncoder.POISON if row in poison else f"text {row}"} for row in range(31)]
    rows[7]["text"] = ""
    path, encoder = write(tmp_path / "a.jsonl", rows), WordEncoder()
    kept, rejected = left_out(path, encoder, batch_rows=16)
    expected = [row for row in range(31) if row not in {*poison, 7}]
    assert kept == [f"d{row}" for row in expected]
    assert [row["row"] for row in rejected] == [5, 6, 8, 12, 31]
    with RejectedRows(tmp_path / "listed") as listed:
        batches = list(corpus(path, encoder, rejected=listed).batches())
    made = torch.cat([batch.gaussians.means for batch in batches])
    assert torch.equal(made, encoder.encode([f"text {row}" for row in expected], Role.DOCUMENT).means)
    with pytest.raises(
        SourceError, match=r"a\.jsonl line 5, column 'text': the model makes no Gaussian of it .*poison"
    ):
        list(corpus(path, encoder).batches())


def test_gaussians_of_another_model_give_way(tmp_path: Path) -> None:
    gaussians = random_gaussians(2, 3)
    path = write_corpus(tmp_path / "a.parquet", gaussians, text=["one", "two"], year=[1, 2])
    encoder = WordEncoder()
    (batch,) = corpus(path, encoder).batches()
    assert torch.equal(batch.gaussians.means, encoder.encode(["one", "two"], Role.DOCUMENT).means)
    assert batch.payload is not None
    assert batch.payload.column_names == ["text", "year"]


def test_files_of_gaussians_are_no_texts_and_say_so(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(SourceError, match=r"its format is not known; names end in \.parquet, .*\.tsv"):
        corpus(tmp_path / "a.npz")
    texts = write(tmp_path / "a.parquet", ROWS)
    with pytest.raises(SourceError, match=r"no column 'id'.* or which model is to make Gaussians of its texts"):
        list(Corpus([texts]).batches())
    needs_model = r"a\.tsv: it holds texts, of which a model makes Gaussians: name one with --model. Gaussians are read"
    with pytest.raises(SourceError, match=needs_model):
        Corpus([write(tmp_path / "a.tsv", ROWS)])
    for name in ("a.csv", "a.csv.gz"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(
            SourceError, match=r"CSV is not read: make it TSV .* with --model .* id, mean and variance$"
        ):
            Corpus([tmp_path / name])
        with pytest.raises(SourceError, match=r"CSV is not read: make it TSV .*, JSON Lines or Parquet$"):
            corpus(tmp_path / name)


@pytest.mark.parametrize("name", ["https://host/a.parquet", "s3://bucket/*.jsonl", "http://host/a.tsv", "hdfs://x/y"])
@pytest.mark.parametrize("kind", [str, Path])
def test_addresses_are_no_files_and_say_so(name: str, kind: type, tmp_path: Path) -> None:
    said = r"^\w+:/.*: sources are files on this machine: download it, and name the file$"
    for texts in (None, TextSource(WordEncoder())):
        with pytest.raises(SourceError, match=said):
            Corpus([kind(name)], texts=texts)
    with pytest.raises(SourceError, match=said):
        encode_texts(kind(name), tmp_path / "a.parquet", EncodeOptions(model="given"), encoder=WordEncoder())


def test_a_folder_with_a_colon_in_its_name_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ab:").mkdir()
    write(tmp_path / "ab:" / "a.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    assert len(corpus(Path("ab:/a.jsonl")).files) == 1


def test_the_digest_is_of_texts_model_columns_and_role(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    digests = [
        Corpus([path], texts=source).digest()
        for source in (
            TextSource(WordEncoder()),
            TextSource(WordEncoder("others")),
            TextSource(WordEncoder(), Role.QUERY),
            TextSource(WordEncoder(), columns=TextColumns(title="none")),
        )
    ]
    assert len(set(digests)) == 4
    assert corpus(path).digest() == digests[0]
    assert corpus(path).locate(["d2"]) == {"d2": [f"{path} line 2"]}


def many(folder: Path, count: int = 40) -> Path:
    return write(folder / "many.jsonl", [{"_id": f"d{row}", "text": f"text {row}", "n": row} for row in range(count)])


def test_an_index_of_texts_remembers_its_model_and_finds_what_it_holds(tmp_path: Path) -> None:
    encoder, directory = WordEncoder(), IndexDirectory(tmp_path / "index")
    built = build_index([many(tmp_path)], directory, BuildOptions(segment_docs=15), encoder=encoder)
    assert built.manifest.model == encoder.record
    searcher = LocalSearcher(directory)
    query = encoder.encode(["text 7"], Role.DOCUMENT)
    (ranking,) = searcher.search(query, top_k=1)
    assert (ranking.ids, ranking.scores.tolist()) == (["d7"], [0.0])
    assert searcher.payloads(ranking.documents) == [{"text": "text 7", "n": 7}]
    assert build_index([many(tmp_path)], directory, BuildOptions(segment_docs=15), encoder=encoder).up_to_date
    other = build_index([many(tmp_path)], directory, BuildOptions(segment_docs=15), encoder=WordEncoder("other"))
    assert not other.up_to_date


def test_an_interrupted_build_encodes_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.sources.TEXT_BATCH_ROWS", 5)
    encoder, directory, options = WordEncoder(), IndexDirectory(tmp_path / "index"), BuildOptions(segment_docs=10)
    encoder.left = 25
    with pytest.raises(KeyboardInterrupt):
        build_index([many(tmp_path)], directory, options, encoder=encoder)
    encoder.left, encoder.read = None, []
    built = build_index([many(tmp_path)], directory, options, encoder=encoder)
    assert built.resumed_documents == 20
    assert [text for text, _ in encoder.read] == [f"text {row}" for row in range(20, 40)]
    whole = build_index([many(tmp_path)], tmp_path / "whole", options, encoder=WordEncoder())
    assert [entry.blake3 for entry in built.manifest.segments] == [entry.blake3 for entry in whole.manifest.segments]


def test_texts_are_added_with_the_model_of_the_index_alone(tmp_path: Path) -> None:
    encoder, directory = WordEncoder(), IndexDirectory(tmp_path / "index")
    build_index([many(tmp_path)], directory, encoder=encoder)
    more = write(tmp_path / "more.jsonl", [{"_id": "new", "text": "new"}, {"_id": "d3", "text": "another"}])
    added = add_documents([more], directory, encoder=encoder)
    assert (added.written, added.replaced, added.manifest.model) == (2, 1, encoder.record)
    with pytest.raises(ModelMismatchError, match=r"Gaussians of the model 'words' .* 'others' .* is another"):
        add_documents([more], directory, encoder=WordEncoder("others"))
    assert directory.manifest().generation == added.manifest.generation
    # Gaussians that nobody says the model of are whoever's wish they are.
    loose = write_corpus(tmp_path / "loose.parquet", random_gaussians(2, 5))
    assert add_documents([loose], directory).written == 2


def labelled(path: Path, record: Any) -> Path:
    """Has a file say which model made its Gaussians."""
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({MODEL_KEY: record.model_dump_json()}), path)
    return path


def test_files_say_which_model_made_their_gaussians(tmp_path: Path) -> None:
    one, two = (write_corpus(tmp_path / f"{name}.parquet", random_gaussians(3, 5)) for name in ("one", "two"))
    labelled(one, WordEncoder().record)
    assert build_index([one], tmp_path / "a").manifest.model == WordEncoder().record
    with pytest.raises(SourceError, match=r"one\.parquet has Gaussians of 'words', and .*two\.parquet does not say"):
        build_index([one, two], tmp_path / "b")
    labelled(two, WordEncoder("other").record)
    with pytest.raises(SourceError, match=r"one\.parquet has Gaussians of 'words', and .*two\.parquet of another"):
        build_index([one, two], tmp_path / "b")
    with pytest.raises(ModelMismatchError, match="'other'"):
        add_documents([two], tmp_path / "a", AddOptions())
    with pytest.raises(SourceError, match=r"two\.parquet has Gaussians of 'other', another model than"):
        build_index([one], tmp_path / "c", BuildOptions(kind=IndexKind.FASTSCAN, queries=two))
    table = pq.read_table(one).replace_schema_metadata({MODEL_KEY: b"{}"})
    pq.write_table(table, one)
    with pytest.raises(SourceError, match=r"one\.parquet: what it says of the model of its Gaussians"):
        build_index([one], tmp_path / "d")


def test_queries_of_texts_are_read_as_queries(tmp_path: Path) -> None:
    encoder = WordEncoder()
    queries = write(tmp_path / "queries.jsonl", [{"_id": f"q{row}", "text": f"query {row}"} for row in range(40)])
    options = BuildOptions(kind=IndexKind.FASTSCAN, queries=queries, code_bytes=2, candidates=40)
    manifest = build_index([many(tmp_path, 500)], tmp_path / "index", options, encoder=encoder).manifest
    assert {role for text, role in encoder.read if text.startswith("query")} == {Role.QUERY}
    assert manifest.measured_recall is not None
    assert manifest.measured_recall.source == "queries"


def test_no_way_to_fetch_is_left_to_ir_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrors = {
        "drive": [GoogleDriveDownload("http://localhost:9/a")],
        "requests": [RequestsDownload("http://localhost:9/a")],
        "bucket": [GoogleCloudBucketStream("https://storage.googleapis.com/a")],
        "several": [LocalDownload(tmp_path / "no"), *(RequestsDownload(f"http://localhost:9/{n}") for n in "ab")],
        "people's": [LocalDownload(tmp_path / "no")],
    }

    class Fetching:
        """A data set that fetches as soon as it is asked what it has."""

        def __init__(self, name: str) -> None:
            self.name = name

        def has_docs(self) -> bool:
            return Download(mirrors[self.name], cache_path=str(tmp_path / "cache")).path() is not None

    def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError("it asks the network")

    monkeypatch.setattr("requests.get", asked)
    monkeypatch.setattr("subprocess.Popen", asked)
    monkeypatch.setattr("ir_datasets.load", Fetching)
    before = RequestsDownload.stream, RequestsDownload.__iter__
    for name in mirrors:
        with pytest.raises(SourceError, match=f"ir_datasets:{name}: its data are not on this machine"):
            export_texts(name, Role.DOCUMENT, tmp_path / "texts.jsonl.zst")
    assert (RequestsDownload.stream, RequestsDownload.__iter__) == before


def test_a_model_that_makes_no_gaussian_of_a_text_is_told_as_one(tmp_path: Path) -> None:
    class Broken(WordEncoder):
        def encode(self, texts: Sequence[str], role: Role) -> Any:
            made = super().encode(texts, role)
            made.means[1] = np.nan
            return made

    with pytest.raises(SourceError, match=r"a\.jsonl line 2, column 'mean': component 0"):
        list(corpus(write(tmp_path / "a.jsonl", ROWS), Broken()).batches())
