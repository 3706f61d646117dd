"""Make a text corpus of Debian's WordNet, in BEIR's form: definitions to find, usage examples that ask for them.

python scripts/wordnet.py --to wordnet-text     needs `apt install wordnet-base`, 30 MB

documents.jsonl          the 117,659 synsets: part of speech and offset, such as n00002452, and "lemmas: definition"
queries.jsonl            the usage examples, which the definitions leave out
qrels/test.tsv           2,000 examples and their synsets
qrels/validation.tsv     1,000
qrels/train.tsv          7,000
qrels/further.tsv        all others that do not tell of the answers to test and validation

The first 10,000 are those of sample/wordnet/splits.tsv: line i says which example of which synset query q<i> is.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from index import GaussearchError
from index.durable import write_where_told

ROOT = Path(__file__).resolve().parent.parent
SPLITS = ROOT / "sample" / "wordnet" / "splits.tsv"
DEBIAN = Path("/usr/share/wordnet")
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
HELD_OUT = ("test", "validation")
FURTHER = "further"

QUOTED = re.compile(r'"([^"]*)"')
QUOTED_AND_WHAT_PARTS_IT = re.compile(r';?\s*"[^"]*"')


class WordNetError(GaussearchError):
    """WordNet's files or the list of splits cannot be read."""

    code = "bad_wordnet"


@dataclass(frozen=True, slots=True)
class Synset:
    """id: part of speech and offset; satellites are adjectives. text: lemmas and definition, without the examples."""

    id: str
    text: str
    examples: list[str]

    @classmethod
    def read(cls, line: str) -> "Synset":
        """The synset of a line of data.*, as wndb(5) has it; ValueError and IndexError where it is none."""
        head, bar, gloss = line.partition(" | ")
        offset, _, kind, count, *fields = head.split(" ")
        if not bar or not re.fullmatch("[0-9]{8}", offset) or kind not in set("nvasr"):
            raise ValueError("no offset, no part of speech or no gloss")
        lemmas = [fields[2 * number].replace("_", " ") for number in range(int(count, 16))]
        definition = re.sub(r"\s+", " ", QUOTED_AND_WHAT_PARTS_IT.sub("", gloss)).strip("; ")
        part = "a" if kind == "s" else kind
        return cls(part + offset, f"{', '.join(lemmas)}: {definition}", QUOTED.findall(gloss))


@dataclass(frozen=True, slots=True)
class Query:
    """A usage example, the synset that it is relevant to, and its split."""

    id: str
    text: str
    relevant: str
    split: str


def read_synsets(folder: Path) -> Iterator[Synset]:
    """The synsets of data.noun, data.verb, data.adj and data.adv, in this order; raises WordNetError."""
    for part in PARTS_OF_SPEECH:
        path = folder / f"data.{part}"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError as error:
            raise WordNetError(
                f"{path} is not there: apt install wordnet-base, or name the folder of its data files by --from"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise WordNetError(f"{path} cannot be read: {error}") from error
        for number, line in enumerate(lines, start=1):
            if line.startswith(" "):  # the licence
                continue
            try:
                yield Synset.read(line)
            except (ValueError, IndexError) as error:
                raise WordNetError(f"{path} line {number} is no synset: {error}") from error


def read_splits(path: Path, synsets: Iterable[Synset]) -> list[Query]:
    """The queries that a list of (synset, number of the example, split) names; raises WordNetError."""
    examples = {synset.id: synset.examples for synset in synsets}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WordNetError(f"{path} cannot be read: {error}") from error
    queries: list[Query] = []
    for number, line in enumerate(lines):
        where = f"{path} line {number + 1}"
        try:
            synset, example, split = line.split("\t")
            place = int(example)
        except ValueError as error:
            raise WordNetError(f"{where}: it must be a synset, the number of an example and a split") from error
        if not 0 <= place < len(examples.get(synset, [])):
            raise WordNetError(f"{where}: {synset} has no example {place}: WordNet 3.0 of wordnet-base is needed")
        queries.append(Query(f"q{number}", examples[synset][place], synset, split))
    return queries


def further_queries(synsets: Iterable[Synset], queries: Iterable[Query]) -> Iterator[Query]:
    """All other examples, but for those of a held-out query's synset, and those whose words one has."""
    taken, synsets_held_out, texts_held_out = set(), set(), set()
    for query in queries:
        taken.add((query.relevant, query.text))
        if query.split in HELD_OUT:
            synsets_held_out.add(query.relevant)
            texts_held_out.add(query.text.casefold())
    for synset in synsets:
        if synset.id in synsets_held_out:
            continue
        for place, text in enumerate(synset.examples):
            if (synset.id, text) not in taken and text.strip() and text.casefold() not in texts_held_out:
                taken.add((synset.id, text))
                yield Query(f"{synset.id}.{place}", text, synset.id, FURTHER)


def write(folder: Path, synsets: Iterable[Synset], queries: list[Query]) -> None:
    """Writes the corpus; each file whole, and in place of what is there."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    _write_lines(folder / "documents.jsonl", ({"_id": each.id, "title": "", "text": each.text} for each in synsets))
    _write_lines(folder / "queries.jsonl", ({"_id": each.id, "text": each.text} for each in queries))
    for split in dict.fromkeys(query.split for query in queries):
        judged = [f"{query.id}\t{query.relevant}\t1" for query in queries if query.split == split]
        lines = ["query-id\tcorpus-id\tscore", *judged, ""]
        write_where_told(folder / "qrels" / f"{split}.tsv", "\n".join(lines).encode())
        print(f"qrels/{split}.tsv: {len(judged):,} queries")


def _write_lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_where_told(path, "".join(f"{line}\n" for line in lines).encode())
    print(f"{path.name}: {len(lines):,} rows")


def main(
    target: Annotated[Path, typer.Option("--to", help="Folder to write, made where it is not there.")],
    source: Annotated[
        Path, typer.Option("--from", help="Folder of data.noun, data.verb, data.adj, data.adv.")
    ] = DEBIAN,
    splits: Annotated[Path, typer.Option(help="Which examples are which queries.")] = SPLITS,
) -> None:
    """Make a text corpus of Debian's WordNet, in BEIR's form: definitions to find, usage examples that ask for them."""
    try:
        synsets = list(read_synsets(source))
        queries = read_splits(splits, synsets)
        write(target, synsets, [*queries, *further_queries(synsets, queries)])
    except (WordNetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
