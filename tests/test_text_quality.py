"""The scripts that train heads and measure rankings of texts, end to end on a tiny corpus and a random model."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from index.text import Role, TextPrecision, load_encoder
from tests.text_models import WIDTH, WORDS, mrl_checkpoint, sentence_model

DOCUMENTS, QUERIES = 60, 48


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of four words, queries of the second and third of them; a model in model/."""
    folder = tmp_path_factory.mktemp("beir")
    (folder / "qrels").mkdir()
    words = [[WORDS[place % len(WORDS)] for place in (row, row // 3, 5 * row, row**2)] for row in range(DOCUMENTS)]
    rows = [{"_id": f"d{row}", "title": text[0], "text": " ".join(text[1:])} for row, text in enumerate(words)]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"_id": f"q{row}", "text": " ".join(words[row][1:3])} for row in range(QUERIES)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    for place, split in enumerate(("train", "validation", "test")):
        lines = [f"q{row}\td{row}\t1\n" for row in range(place, QUERIES, 3)]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    sentence_model(folder / "model")
    return folder


def run(scripts: Any, name: str, corpus: Path, *options: str) -> Result:
    app = typer.Typer()
    app.command()(scripts(name).main)
    return CliRunner().invoke(app, [str(corpus), "--cache", str(corpus / "cache"), *options])


def trained(scripts: Any, corpus: Path, target: Path, *options: str) -> dict[str, torch.Tensor]:
    effort = ["--k", "4", "--epochs", "3", "--batch", "8", "--negatives", "16", "--base", str(corpus / "model")]
    done = run(scripts, "train_head", corpus, "--to", str(target), *effort, *options)
    assert done.exit_code == 0, done.output
    return load_file(target / "head.safetensors")


@pytest.fixture(scope="module")
def head(scripts: Any, corpus: Path) -> Path:
    trained(scripts, corpus, corpus / "head")
    return corpus / "head"


def test_trained_heads_are_a_model_that_loads(head: Path) -> None:
    encoder = load_encoder(head)
    assert (encoder.record.encoder, encoder.record.k) == ("head", 4)
    asked, found = (encoder.encode(["bit of metal"], role) for role in Role)
    assert not torch.equal(asked.means, found.means)


def test_the_same_seed_makes_the_same_heads_and_another_others(scripts: Any, corpus: Path, head: Path) -> None:
    first = load_file(head / "head.safetensors")
    again = trained(scripts, corpus, corpus / "again")
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = trained(scripts, corpus, corpus / "other", "--seed", "1")
    assert not torch.equal(first["mean.weight"], other["mean.weight"])


def test_tied_heads_in_float8(scripts: Any, corpus: Path) -> None:
    tensors = trained(scripts, corpus, corpus / "tied", "--tied", "--dtype", "float8")
    assert {name: tuple(each.shape) for name, each in tensors.items()} == {
        "mean.weight": (4, WIDTH),
        "mean.bias": (4,),
        "variance.weight": (4, WIDTH),
        "variance.bias": (4,),
    }
    assert tensors["mean.weight"].dtype == torch.float8_e4m3fn
    encoder = load_encoder(corpus / "tied")
    asked, found = (encoder.encode(["bit of metal"], role) for role in Role)
    torch.testing.assert_close(asked.means, found.means)


def all_scores(
    queries: tuple[torch.Tensor, torch.Tensor], documents: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """-KL by torch.distributions, in float64."""
    normal = [
        torch.distributions.Normal(mean.double(), variance.double().sqrt()) for mean, variance in (queries, documents)
    ]
    each = [
        torch.distributions.Normal(mean, deviation)
        for mean, deviation in zip(normal[0].mean, normal[0].stddev, strict=True)
    ]
    return -torch.stack([torch.distributions.kl_divergence(query, normal[1]).sum(1) for query in each])


def test_scores_rank_as_kl_does(scripts: Any) -> None:
    torch.manual_seed(0)
    (queries, documents) = ((torch.randn(n, 5), torch.rand(n, 5) + 0.1) for n in (3, 40))
    ranked = scripts("pair_training").scores(queries, documents).argsort(dim=1)
    assert torch.equal(ranked, all_scores(queries, documents).argsort(dim=1))


def test_training_finds_more_than_it_began_with(scripts: Any) -> None:
    training, pairs_of = scripts("head_training"), scripts("pair_training").Pairs
    torch.manual_seed(0)
    documents = torch.nn.functional.normalize(torch.randn(200, 16), dim=1)
    # What queries share with their documents lies in half of the dimensions; the others mislead.
    queries = torch.cat([documents[:, :8], torch.randn(200, 8) / 3], dim=1)
    pairs = pairs_of(torch.arange(200), torch.arange(200))
    recipe = training.Recipe(k=8, epochs=40, patience=40, batch=20, negatives=50, learning_rate=0.02, noise=0.1)
    run = training.Training(queries, documents, pairs, pairs, recipe)
    before = run.validate()
    epochs = list(run.run(lambda: None))
    assert epochs[-1].loss < epochs[0].loss
    best = run.validate()
    assert best == max(epoch.validation for epoch in epochs)
    assert best > before + 0.2


def test_other_relevant_documents_are_no_negatives(scripts: Any) -> None:
    training = scripts("pair_training")
    pairs = training.Pairs(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2]))
    candidates = torch.tensor([0, 1, 2, 3])
    others = training.OtherRelevant(pairs, documents=4)
    kept = others.without(torch.zeros(3, 4), pairs.queries, candidates, pairs.documents)
    assert kept.isinf().tolist() == [[False, True, False, False], [True, False, False, False], [False] * 4]


def test_quality_of_every_ranking(scripts: Any, corpus: Path, head: Path, tmp_path: Path) -> None:
    base, reports = str(corpus / "model"), [str(tmp_path / name) for name in ("figures.json", "figures.md")]
    effort = ["--seconds", "0.01", "--rounds", "1", "--precision", "float32"]
    models = ["--base", base, "--head", str(head)]
    for name in ("mrl", "points"):
        mrl_checkpoint(tmp_path / name, beta=1 if name == "mrl" else 2.5)
        models += [f"--{name}", str(tmp_path / name)]
    files = ["--json", reports[0], "--markdown", reports[1]]
    done = run(scripts, "text_quality", corpus, *models, *effort, *files)
    assert done.exit_code == 0, done.output
    report = json.loads(Path(reports[0]).read_text())
    values = {(each["setting"], each["measure"]): each["value"] for each in report["figures"]}
    rankings = {setting for setting, measure in values if measure == "RR@10"}
    kinds = ("flat", "fastscan", "ivf-fastscan", "hnsw")
    assert rankings == {
        "cosine",
        *(f"{model}, cosine of the means" for model in ("head", "mrl", "points")),
        *(f"{model}, {kind}" for model in ("pooled", "head", "mrl") for kind in kinds),
        "points, flat",
    }
    assert all(0 <= values[ranking, measure] <= 1 for ranking in rankings for measure in ("nDCG@10", "R@100"))
    assert all(values[ranking, "one query"] > 0 for ranking in rankings)
    assert all(values[f"encoding, {model}", "documents"] > 0 for model in ("pooled", "head", "mrl", "points"))
    for name, other in (
        ("pooled, flat", "cosine"),
        ("head, flat", "head, cosine of the means"),
        ("mrl, flat", "points, flat"),
    ):
        gain = values[name, "RR@10"] - values[other, "RR@10"]
        assert values[name, f"RR@10 over {other}"] == pytest.approx(gain, abs=1e-12)
        assert 0 <= values[name, f"RR@10 over {other}, p"] <= 1
    # All of so few documents are among the best hundred.
    assert values["head, flat", "R@100"] == 1
    told = Path(reports[1]).read_text()
    assert told == done.stdout
    assert "| head, hnsw | 4 | " in told
    assert f"mrl, flat, MRR@10 over points, flat: {values['mrl, flat', 'RR@10 over points, flat']:+.4f} (" in told
    assert report["command"].startswith("python scripts/text_quality.py")
    assert report["arguments"]["precision"] == "float32"
    assert report["arguments"]["models"]["mrl"] == load_encoder(tmp_path / "mrl").record.fingerprint


def test_mrr_is_that_of_all_scores(scripts: Any, corpus: Path, head: Path, tmp_path: Path) -> None:
    encoder = load_encoder(head, precision=TextPrecision.FLOAT32)
    read = scripts("beir").Beir.read(corpus)
    asked = read.queries.only(read.qrels(["test"]))
    documents = encoder.encode(read.documents.texts, Role.DOCUMENT)
    queries = encoder.encode(asked.texts, Role.QUERY)
    scores = all_scores((queries.means, queries.variances), (documents.means, documents.variances))
    ranks = [(row >= row[int(query[1:])]).sum() for query, row in zip(asked.ids, scores, strict=True)]
    expected = sum(1 / int(rank) for rank in ranks if rank <= 10) / len(ranks)
    figures = tmp_path / "by-k.json"
    heads = ["--by-k", f"{head},{corpus / 'head'}", "--json", str(figures)]
    model = ["--base", str(corpus / "model"), "--precision", "float32"]
    assert run(scripts, "text_quality", corpus, *model, *heads).exit_code == 0
    found = {
        each["setting"]: each["value"]
        for each in json.loads(figures.read_text())["figures"]
        if each["measure"] == "RR@10"
    }
    assert found["head 1, flat"] == found["head 2, flat"] == pytest.approx(expected, abs=1e-6)
    importlib.import_module("matplotlib")
    monkey = pytest.MonkeyPatch()
    monkey.setattr(sys, "argv", ["benchmark_plot.py", str(figures), "--quality", str(tmp_path / "by-k.svg")])
    scripts("benchmark_plot").main()
    monkey.undo()
    assert (tmp_path / "by-k.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("documents.jsonl", '{"_id": "d0"}\n', "line 1: it must be an object with _id and text"),
        ("documents.jsonl", '{"_id": "d0", "text": 1}\n', "line 1: _id, title and text must be strings"),
        ("documents.jsonl", '{"_id": "a", "text": "b"}\n' * 2, "an id is there twice"),
        ("queries.jsonl", "", "it is empty"),
        ("qrels/train.tsv", "query-id\tcorpus-id\tscore\nq0\tnobody\t1\n", "document 'nobody' is not in the corpus"),
        ("qrels/train.tsv", "query-id\tcorpus-id\tscore\nq9\td0\t1\n", "query 'q9' is not in the corpus"),
        ("qrels/validation.tsv", "query-id\tcorpus-id\tscore\nq0\td0\t1\n", "query 'q0' is in another split, too"),
    ],
)
def test_broken_corpora_are_named(scripts: Any, tmp_path: Path, name: str, text: str, error: str) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "documents.jsonl").write_text('{"_id": "d0", "text": "a"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q0", "text": "a"}\n{"_id": "q1", "text": "b"}\n')
    for split, query in (("train", "q0"), ("validation", "q1")):
        (tmp_path / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{query}\td0\t1\n")
    (tmp_path / name).write_text(text)
    done = run(scripts, "train_head", tmp_path, "--to", str(tmp_path / "head"))
    assert done.exit_code == 1
    assert f"error: {tmp_path / name}" in done.output
    assert error in done.output
    assert not (tmp_path / "head").exists()


@pytest.mark.parametrize(("splits", "there"), [(["train", "dev"], "dev, train"), ([], "none")])
def test_a_split_that_is_missing_is_told_with_those_that_are_there(
    scripts: Any, tmp_path: Path, splits: list[str], there: str
) -> None:
    (tmp_path / "qrels").mkdir()
    for name in ("documents", "queries"):
        (tmp_path / f"{name}.jsonl").write_text('{"_id": "q0", "text": "a"}\n')
    for split in splits:
        (tmp_path / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\nq0\tq0\t1\n")
    done = run(scripts, "train_head", tmp_path, "--to", str(tmp_path / "head"), "--train", "validation")
    assert done.exit_code == 1
    assert f"error: {tmp_path}: no qrels/validation.tsv; there are: {there}" in done.output


def test_a_split_that_judges_nothing_relevant_trains_nothing(scripts: Any, tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "documents.jsonl").write_text('{"_id": "d0", "text": "a"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q0", "text": "a"}\n{"_id": "q1", "text": "b"}\n')
    for split, query in (("train", "q0"), ("validation", "q1")):
        (tmp_path / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{query}\td0\t0\n")
    done = run(scripts, "train_head", tmp_path, "--to", str(tmp_path / "head"))
    assert done.exit_code == 1
    assert f"error: {tmp_path}: no document is relevant to a query of train" in done.output


def test_carried_head_finds_what_the_sample_asks_for(scripts: Any, sample: Path) -> None:
    assert (sample / "head" / "head.safetensors").stat().st_size < 250_000
    encoder = load_encoder(sample / "head", precision=TextPrecision.FLOAT32)
    assert (encoder.record.encoder, encoder.record.k) == ("head", 128)
    queries = pq.read_table(sample / "queries.parquet", columns=["text", "relevant"]).slice(0, 40).to_pylist()
    documents = pq.read_table(sample / "documents.parquet", columns=["id", "text"]).to_pylist()
    texts = {document["id"]: document["text"] for document in documents}
    found = encoder.encode([texts[query["relevant"]] for query in queries], Role.DOCUMENT)
    asked = encoder.encode([query["text"] for query in queries], Role.QUERY)
    scores = scripts("pair_training").scores((asked.means, asked.variances), (found.means, found.variances))
    first = scores.argmax(1) == torch.arange(len(queries))
    assert first.float().mean() > 0.8


@pytest.mark.parametrize("last", ["head.safetensors", "encoder.json"])
def test_heads_whose_writing_is_interrupted_leave_those_before(
    scripts: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    target = tmp_path / "head"
    before = trained(scripts, corpus, target)
    module, write = scripts("train_head"), Path.write_bytes

    def interrupted(path: Path, data: bytes) -> int:
        if path.name == last:
            raise KeyboardInterrupt
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    heads, recipe = module.Heads(torch.eye(WIDTH), module.Recipe(k=4)), module.Recipe(k=4)
    with pytest.raises(KeyboardInterrupt):
        module.write_model(target, heads, str(corpus / "model"), "0" * 64, recipe, module.Dtype.FLOAT32)
    load_encoder(target)
    assert {path.name for path in target.iterdir()} == {"head.safetensors", "encoder.json"}
    after = load_file(target / "head.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_where_no_head_can_be_written_none_is_trained(scripts: Any, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "head").touch()
    done = run(scripts, "train_head", corpus, "--to", str(tmp_path / "head"), "--base", str(corpus / "model"))
    assert done.exit_code == 1
    assert f"error: {tmp_path / 'head'}: no model can be written there: it is no folder" in done.output
    assert "epoch" not in done.output


def test_heads_that_diverge_are_not_written(scripts: Any, corpus: Path, tmp_path: Path) -> None:
    effort = ["--batch", "8", "--learning-rate", "1e30", "--base", str(corpus / "model")]
    done = run(scripts, "train_head", corpus, "--to", str(tmp_path / "head"), *effort)
    assert done.exit_code == 1, done.output
    assert "error: the training diverged at epoch 1: take a lower --learning-rate" in done.output
    assert not list((tmp_path / "head").iterdir())


def test_what_has_no_number_is_not_found(scripts: Any) -> None:
    training = scripts("pair_training")
    asked = found = (torch.full((3, 2), torch.nan), torch.ones(3, 2))
    assert training.reciprocal_rank(asked, found, training.Pairs(torch.arange(3), torch.arange(3))) == 0
