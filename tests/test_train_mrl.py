"""scripts/train_mrl.py, end to end on a tiny corpus and a random model."""

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from index.errors import ModelError
from index.text import Role, TextPrecision, load_encoder
from tests.text_models import WORDS, sentence_model

SCRIPTS = Path(__file__).parent.parent / "scripts"
TEXTS = ["bit of metal", "", "bread is food " * 9, "the wheel of a car", "[VAR] in the horse's mouth"]
ALL = "train,validation,further"


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    """Imports a module of scripts/."""
    before = list(sys.path)
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module
    sys.path[:] = before


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of two words, which queries name after one that misleads; a sentence model in model/."""
    folder = tmp_path_factory.mktemp("beir")
    (folder / "qrels").mkdir()
    names = [(one, other) for one in WORDS[:8] for other in WORDS[8:16]]
    rows = [{"_id": f"d{row}", "text": " ".join(pair)} for row, pair in enumerate(names)]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"_id": f"q{row}", "text": f"{WORDS[16 + row % 5]} {b} {a}"} for row, (a, b) in enumerate(names)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    for place, split in enumerate(("train", "validation", "further")):
        lines = [f"q{row}\td{row}\t1\n" for row in range(place, len(names), 3)]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    sentence_model(folder / "model", spread=0.1)
    return folder


def run(scripts: Any, corpus: Path, target: Path, *options: str) -> Result:
    app = typer.Typer()
    app.command()(scripts("train_mrl").main)
    effort = ["--k", "6", "--epochs", "2", "--batch", "16", "--negatives", "8", "--device", "cpu"]
    given = [str(corpus), "--to", str(target), "--base", str(corpus / "model"), *effort, *options]
    return CliRunner().invoke(app, given)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds."""
    tensors = load_file(folder / "model.safetensors")
    for name in ("projection_mean", "projection_var"):
        state = torch.load(folder / name, weights_only=True)
        tensors.update({f"{name}.{key}": value for key, value in state.items()})
    return tensors


@pytest.fixture(scope="module")
def model(scripts: Any, corpus: Path) -> Path:
    done = run(scripts, corpus, corpus / "mrl")
    assert done.exit_code == 0, done.output
    return corpus / "mrl"


def trained(scripts: Any, corpus: Path, splits: Any = (ALL, ALL), device: str = "cpu", **changed: Any) -> Any:
    """A training on splits of the corpus, to learn from and to validate with, that has not begun."""
    read, training = scripts("beir").Beir.read(corpus), scripts("mrl_training")
    used = read.queries.only(read.qrels(ALL.split(",")))
    pairs = [scripts("pair_training").pairs_of(read, split, used) for split in splits]
    recipe = training.Recipe(**{"k": 6, "batch": 16, "negatives": 8, **changed})
    return training.Training(corpus / "model", used.texts, read.documents.texts, *pairs, recipe, torch.device(device))


def test_a_checkpoint_loads(model: Path) -> None:
    encoder = load_encoder(model)
    assert (encoder.record.encoder, encoder.record.k) == ("mrl", 6)
    names = {path.name for path in model.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "projection_mean", "projection_var"}
    config = json.loads((model / "encoder.json").read_text())
    assert (config["encoder"], config["beta"], config["query_tokens"], config["document_tokens"]) == (
        "mrl",
        2.5,
        32,
        128,
    )
    shapes = {name: tuple(each.shape) for name, each in weights(model).items() if name.startswith("projection")}
    assert shapes == {"projection_mean.weight": (6, 32), "projection_var.0.weight": (6, 32)}
    # Whoever may read one file may read all.
    assert len({path.stat().st_mode for path in model.iterdir()}) == 1


@pytest.mark.parametrize("tokens", [(32, 128), (6, 4)])
def test_a_checkpoint_makes_the_gaussians_of_the_training(
    scripts: Any, corpus: Path, tmp_path: Path, tokens: tuple[int, int]
) -> None:
    config = scripts("mrl_training").MrlConfig(beta=1.5, query_tokens=tokens[0], document_tokens=tokens[1])
    training = trained(scripts, corpus, epochs=2, learning_rate=1e-2, config=config)
    list(training.run(lambda: None))
    module = training.module.eval()
    module.save(tmp_path)
    encoder = load_encoder(tmp_path, precision=TextPrecision.FLOAT32, device="cpu")
    for role in Role:
        found = encoder.encode(TEXTS, role)
        with torch.no_grad():
            mean, variance = module.gaussians(module.tokens(TEXTS, role), torch.arange(len(TEXTS)))
        torch.testing.assert_close(found.means, mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.variances, variance, rtol=1e-5, atol=1e-6)
    assert variance.std(0).min() > 0


def test_training_finds_more_than_it_began_with(scripts: Any, corpus: Path) -> None:
    training = trained(scripts, corpus, epochs=20, patience=20, learning_rate=3e-3)
    before = training.validate()
    epochs = list(training.run(lambda: None))
    assert epochs[-1].loss < epochs[0].loss
    best = training.validate()
    assert best == pytest.approx(max(epoch.validation for epoch in epochs))
    assert best > before + 0.2


def test_points_have_one_variance(scripts: Any, corpus: Path) -> None:
    assert run(scripts, corpus, corpus / "points", "--points").exit_code == 0
    made = load_encoder(corpus / "points").encode(TEXTS, Role.DOCUMENT)
    torch.testing.assert_close(made.variances, torch.full_like(made.variances, math.log(2) / 2.5))
    assert made.means.std(0).min() > 0


def test_validation_is_the_mrr_of_all_scores(scripts: Any, corpus: Path) -> None:
    training = trained(scripts, corpus)
    module, rows = training.module.eval(), torch.arange(64)
    with torch.no_grad():
        asked, found = (module.gaussians(tokens, rows) for tokens in (training._queries, training._documents))
    normal = [torch.distributions.Normal(mean.double(), variance.double().sqrt()) for mean, variance in (asked, found)]
    ranks = []
    for query, document in zip(training._training.queries, training._training.documents, strict=True):
        one = torch.distributions.Normal(normal[0].mean[query], normal[0].stddev[query])
        scores = -torch.distributions.kl_divergence(one, normal[1]).sum(1)
        ranks.append(int((scores >= scores[document]).sum()))
    expected = sum(1 / rank for rank in ranks if rank <= 10) / len(ranks)
    assert training.validate() == pytest.approx(expected, abs=1e-6)


def test_fewer_documents_to_validate_with_are_found_more_easily(scripts: Any, corpus: Path) -> None:
    reached = []
    for drawn in (0, 10, 64):
        training = trained(scripts, corpus, ("train", "validation"), validate_documents=drawn)
        relevant, all_of_them = set(range(1, 64, 3)), set(training._candidates.tolist())
        assert relevant <= all_of_them
        assert len(all_of_them - relevant) <= drawn
        reached.append(training.validate())
    assert len(all_of_them) == 64
    assert reached == sorted(reached, reverse=True)


def test_the_same_seed_makes_the_same_weights_and_another_others(scripts: Any, corpus: Path, model: Path) -> None:
    first = weights(model)
    torch.rand(3)
    assert run(scripts, corpus, corpus / "again").exit_code == 0
    again = weights(corpus / "again")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert run(scripts, corpus, corpus / "other", "--seed", "1").exit_code == 0
    assert not torch.equal(first["projection_mean.weight"], weights(corpus / "other")["projection_mean.weight"])


def test_the_variance_token_is_new_and_lies_in_the_middle(scripts: Any, corpus: Path) -> None:
    module = trained(scripts, corpus).module
    table = module.transformer.get_input_embeddings().weight.detach()
    place = module.tokenizer.convert_tokens_to_ids("[VAR]")
    assert (len(table), place) == (28, 27)
    torch.testing.assert_close(table[place], table[:place].mean(0))
    tokens = module.tokens(["bit"], Role.QUERY)
    assert tokens.ids[0, :2].tolist() == [2, place]


def test_a_base_that_knows_the_variance_token_keeps_it(scripts: Any, corpus: Path, model: Path) -> None:
    again = scripts("mrl_module")._load(model)[1]
    table = weights(model)["embeddings.word_embeddings.weight"]
    torch.testing.assert_close(again.get_input_embeddings().weight.detach(), table)
    assert run(scripts, corpus, corpus / "longer", "--base", str(model)).exit_code == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--validation", "dev"], "no qrels/dev.tsv; there are: further, train, validation"),
        (["--base", "package:no_such_package"], "no such package is installed here"),
        (["--base", "."], "transformers cannot load it"),
        (["--device", "cuda:99"], "device cuda:99 is not there"),
        (["--k", "33"], "its hidden states are of 32 dimensions"),
    ],
)
def test_errors_are_told(scripts: Any, corpus: Path, tmp_path: Path, options: list[str], error: str) -> None:
    done = run(scripts, corpus, tmp_path / "mrl", *options)
    assert done.exit_code == 1, done.output
    assert "error: " in done.output
    assert error in done.output
    assert not (tmp_path / "mrl").exists()


@pytest.mark.parametrize("name", ["modules.json", "pooler.pt", "query_model"])
def test_no_checkpoint_is_written_into_another_model(scripts: Any, corpus: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    done = run(scripts, corpus, tmp_path)
    assert done.exit_code == 1
    assert f"{name} of another model is there" in done.output
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("last", ["model.safetensors", "projection_var", "encoder.json", "projection_mean"])
def test_a_checkpoint_whose_writing_is_interrupted_is_no_model(
    scripts: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    module, folders = trained(scripts, corpus).module, scripts("model_folder")
    module.save(tmp_path)
    load_encoder(tmp_path)
    write, write_bytes = folders.write_atomically, Path.write_bytes

    def interrupted(path: Path, data: bytes, of: Any = write) -> None:
        if path.name == last:
            raise KeyboardInterrupt
        of(path, data)

    monkeypatch.setattr(folders, "write_atomically", interrupted)
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: interrupted(path, data, write_bytes))
    if last == "model.safetensors":
        monkeypatch.setattr(module.tokenizer, "save_pretrained", lambda _: interrupted(tmp_path / last, b""))
    with pytest.raises(KeyboardInterrupt):
        module.save(tmp_path)
    with pytest.raises(ModelError):
        load_encoder(tmp_path)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_training_on_a_gpu(scripts: Any, corpus: Path, tmp_path: Path) -> None:
    training = trained(scripts, corpus, device="cuda", epochs=20, patience=20, learning_rate=3e-3)
    before = training.validate()
    list(training.run(lambda: None))
    assert training.validate() > before + 0.2
    module = training.module.eval()
    module.save(tmp_path)
    found = load_encoder(tmp_path, precision=TextPrecision.FLOAT32, device="cpu").encode(TEXTS, Role.QUERY)
    with torch.no_grad():
        mean, _ = module.gaussians(module.tokens(TEXTS, Role.QUERY), torch.arange(len(TEXTS)))
    # In bfloat16 here.
    assert float((mean.cpu() - found.means).abs().max()) < 0.1 * float(found.means.abs().max())
