"""scripts/wordnet.py on a handful of synsets, and the carried list of splits."""

import json
import runpy
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner, Result

from index import Columns, VarianceAs
from service.trec import read_qrels

SCRIPT = Path(__file__).parent.parent / "scripts" / "wordnet.py"
MADE = runpy.run_path(str(SCRIPT))
APP = typer.Typer()
APP.command()(MADE["main"])
READING = (Columns(), VarianceAs.VARIANCE, "relevant")

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n"
NOUNS = (
    LICENCE
    + "00001740 03 n 01 entity 0 000 | that which is perceived  \n"
    + '00249987 04 n 02 long_stride 0 stride 1 000 | significant progress (especially in the phrase "make strides"); '
    + '"they made big strides"; "long strides were made"  \n'
    + '00399223 11 n 01 permutation 0 000 | complete change; "the permutations...taking place"- Henry Miller  \n'
)
VERBS = (
    '02438535 41 v 01 handle 0 001 @ 02436349 v 0000 01 + 08 00 | deal with; "I\'ll handle that"; "They handle it"  \n'
)
ADJECTIVES = (
    "00020103 00 s 0a " + "".join(f"near{n}(p) 0 " for n in range(10)) + '000 | not far; "they made BIG strides"  \n'
)
ADVERBS = '00515681 02 r 01 so 0 000 | very; "so good"; "so good"; ""  \n'
SPLITS = "n00249987\t1\ttest\nv02438535\t1\ttrain\nn00399223\t0\tvalidation\n"


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    """A folder of data files, and of a list of splits."""
    for part, text in (("noun", NOUNS), ("verb", VERBS), ("adj", ADJECTIVES), ("adv", ADVERBS)):
        (tmp_path / f"data.{part}").write_text(text, encoding="utf-8")
    (tmp_path / "splits.tsv").write_text(SPLITS, encoding="utf-8")
    return tmp_path


def run(wordnet: Path) -> Result:
    options = ["--from", str(wordnet), "--splits", str(wordnet / "splits.tsv"), "--to", str(wordnet / "made")]
    return CliRunner().invoke(APP, options)


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_documents_are_lemmas_and_definitions_without_examples(wordnet: Path) -> None:
    assert run(wordnet).exit_code == 0
    documents = lines(wordnet / "made" / "documents.jsonl")
    assert {document["title"] for document in documents} == {""}
    near = ", ".join(f"near{number}(p)" for number in range(10))
    assert {document["_id"]: document["text"] for document in documents} == {
        "n00001740": "entity: that which is perceived",
        "n00249987": "long stride, stride: significant progress (especially in the phrase)",
        "n00399223": "permutation: complete change- Henry Miller",
        "v02438535": "handle: deal with",
        "a00020103": f"{near}: not far",
        "r00515681": "so: very",
    }


def test_examples_are_the_queries_of_their_splits(wordnet: Path) -> None:
    assert run(wordnet).exit_code == 0
    texts = {query["_id"]: query["text"] for query in lines(wordnet / "made" / "queries.jsonl")}
    assert texts["q0"] == "they made big strides"
    found = {
        path.stem: {
            (texts[query], document) for query, judged in read_qrels(path, *READING).items() for document in judged
        }
        for path in (wordnet / "made" / "qrels").iterdir()
    }
    assert found == {
        "test": {("they made big strides", "n00249987")},
        "train": {("They handle it", "v02438535")},
        "validation": {("the permutations...taking place", "n00399223")},
        # Nothing of the synsets of test and validation, and nothing that one of their queries says, in any case.
        "further": {("I'll handle that", "v02438535"), ("so good", "r00515681")},
    }


def test_missing_wordnet_is_an_error_that_says_what_to_install(wordnet: Path) -> None:
    (wordnet / "data.verb").unlink()
    done = run(wordnet)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {wordnet / 'data.verb'} is not there: apt install wordnet-base")
    assert not (wordnet / "made").exists()


@pytest.mark.parametrize("line", ["00001740 03 n 05 entity 0 000 | too few lemmas", "no synset", "1 03 n 01 a 0 | b"])
def test_broken_data_is_named(wordnet: Path, line: str) -> None:
    (wordnet / "data.noun").write_text(f"{LICENCE}{line}\n", encoding="utf-8")
    done = run(wordnet)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {wordnet / 'data.noun'} line 2 is no synset")


@pytest.mark.parametrize("line", ["n00249987\t3\ttest", "n99999999\t0\ttest", "n00249987\tone\ttest", "n00249987"])
def test_broken_splits_are_named(wordnet: Path, line: str) -> None:
    (wordnet / "splits.tsv").write_text(f"{SPLITS}{line}\n", encoding="utf-8")
    done = run(wordnet)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {wordnet / 'splits.tsv'} line 4: ")


def test_carried_splits_are_whole() -> None:
    rows = [line.split("\t") for line in MADE["SPLITS"].read_text(encoding="utf-8").splitlines()]
    assert Counter(split for _, _, split in rows) == {"test": 2_000, "validation": 1_000, "train": 7_000}
    assert len({(synset, example) for synset, example, _ in rows}) == 10_000


@pytest.mark.skipif(not MADE["DEBIAN"].exists(), reason="wordnet-base is not installed")
def test_carried_queries_are_those_of_the_sample(sample: Path) -> None:
    queries = MADE["read_splits"](MADE["SPLITS"], MADE["read_synsets"](MADE["DEBIAN"]))
    table = pq.read_table(sample / "queries.parquet", columns=["id", "text", "relevant"]).to_pylist()
    assert [{"id": each.id, "text": each.text, "relevant": each.relevant} for each in queries[: len(table)]] == table
