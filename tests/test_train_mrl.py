"""scripts/train_mrl.py, end to end on a tiny corpus and a random model."""

import errno
import json
import math
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from index.errors import ModelError
from index.text import Role, TextPrecision, load_encoder
from index.text.references import fingerprint
from tests.text_models import WORDS, sentence_model

TEXTS = ["bit of metal", "", "bread is food " * 9, "the wheel of a car", "[VAR] in the horse's mouth"]
ALL = "train,validation,further"


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
    effort = ["--k", "6", "--epochs", "2", "--batch", "8", "--negatives", "8", "--learning-rate", "3e-3"]
    given = [str(corpus), "--to", str(target), "--base", str(corpus / "model"), "--device", "cpu", *effort, *options]
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
    module.save(tmp_path, {})
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


FAILURES: list[BaseException] = [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]


@pytest.fixture
def changed(scripts: Any, corpus: Path, tmp_path: Path) -> Any:
    """A module that is saved in a folder, and has been changed since."""
    module = trained(scripts, corpus).module
    module.save(tmp_path, {})
    with torch.no_grad():
        for each in module.parameters():
            each.add_(1)
    return module


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("last", ["model.safetensors", "projection_var", "encoder.json", "projection_mean", "sync"])
def test_a_checkpoint_whose_writing_fails_leaves_the_one_before(
    scripts: Any, changed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, failure: BaseException
) -> None:
    before, names, write_bytes = weights(tmp_path), sorted(tmp_path.iterdir()), Path.write_bytes

    def failing(*_: object) -> None:
        raise failure

    def written(path: Path, data: bytes) -> int:
        if path.name == last:
            raise failure
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", written)
    if last == "model.safetensors":
        monkeypatch.setattr(changed.tokenizer, "save_pretrained", failing)
    if last == "sync":
        monkeypatch.setattr(scripts("model_folder"), "sync", failing)
    with pytest.raises((type(failure), ModelError)):
        changed.save(tmp_path, {})
    load_encoder(tmp_path)
    after = weights(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(tmp_path.iterdir()) == names
    monkeypatch.undo()
    changed.save(tmp_path, {})
    assert not torch.equal(before["projection_mean.weight"], weights(tmp_path)["projection_mean.weight"])


@pytest.mark.parametrize("last", ["model.safetensors", "projection_var", "encoder.json", "projection_mean"])
def test_a_checkpoint_that_is_interrupted_while_it_takes_its_place_is_no_model(
    changed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    replace = Path.replace

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == last:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        changed.save(tmp_path, {})
    with pytest.raises(ModelError):
        load_encoder(tmp_path)
    monkeypatch.undo()
    changed.save(tmp_path, {})
    load_encoder(tmp_path)


def test_files_of_others_stay_as_they_are(
    scripts: Any, changed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.safetensors"
    other.touch(0o600)
    # What a killed one has left goes.
    (tmp_path / ".gaussearch-partial").mkdir()
    (tmp_path / ".gaussearch-partial" / "left.bin").touch()
    synced: list[Path] = []
    monkeypatch.setattr(scripts("model_folder"), "sync", synced.append)
    changed.save(tmp_path, {})
    assert stat.S_IMODE(other.stat().st_mode) == 0o600
    assert "other.safetensors" not in {path.name for path in synced}
    assert {"model.safetensors", "projection_mean"} <= {path.name for path in synced}
    assert {"left.bin", ".gaussearch-partial"}.isdisjoint(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize("below", ["", "mrl"])
def test_a_file_in_the_way_is_found_before_training(scripts: Any, corpus: Path, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    done = run(scripts, corpus, tmp_path / "file" / below)
    assert done.exit_code == 1
    assert f"error: {tmp_path / 'file' / below}: no model can be written there: " in done.output
    assert "before:" not in done.output


def test_a_folder_of_others_is_found_before_training(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")  # as root is not

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refused)
    with pytest.raises(ModelError, match=r"mrl: no model can be written there: Permission denied; name another folder"):
        scripts("mrl_module").require_room(tmp_path / "new" / "mrl")
    assert not list(tmp_path.iterdir())


def test_adapters_are_found_before_training(scripts: Any, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").touch()
    done = run(scripts, corpus, tmp_path)
    assert done.exit_code == 1
    assert f"error: {tmp_path}: adapter_config.json is there, of an adapter" in done.output
    assert len(list(tmp_path.iterdir())) == 1
    shutil.copytree(corpus / "model", tmp_path / "base")
    (tmp_path / "base" / "adapter_config.json").write_text("{}")
    done = run(scripts, corpus, tmp_path / "mrl", "--base", str(tmp_path / "base"))
    assert done.exit_code == 1
    assert "adapter_config.json: it is an adapter over a model that lies elsewhere" in done.output
    with pytest.raises(ModelError, match=r"adapter_config\.json is there"):
        scripts("mrl_module")._load(tmp_path / "base")


@pytest.mark.parametrize(
    ("rate", "error"),
    [
        ("1e30", "the training diverged at epoch 1: take a lower --learning-rate"),
        ("0", "no epoch is better than what it began with, and nothing has been written"),
    ],
)
def test_a_training_that_comes_to_nothing_writes_nothing(
    scripts: Any, corpus: Path, tmp_path: Path, rate: str, error: str
) -> None:
    done = run(scripts, corpus, tmp_path / "mrl", "--learning-rate", rate)
    assert done.exit_code == 1, done.output
    assert f"error: {error}" in done.output
    assert not (tmp_path / "mrl").exists()


def test_weights_that_a_last_step_breaks_are_told_though_its_loss_is_a_number(
    scripts: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = trained(scripts, corpus)

    def broken(_: torch.Tensor) -> float:
        training.module.log_temperature.data.fill_(torch.nan)
        return 1.0

    monkeypatch.setattr(training, "_update", broken)
    with pytest.raises(scripts("pair_training").TrainingError, match="diverged at epoch 1"):
        next(training.run(lambda: None))


def test_a_loss_that_is_no_number_ends_a_training_at_its_step(
    scripts: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, losses, steps = trained(scripts, corpus), iter([1.0, math.nan, 1.0, 1.0]), []
    assert training.steps == 4
    monkeypatch.setattr(training, "_update", lambda _: next(losses))
    with pytest.raises(scripts("pair_training").TrainingError, match="diverged at epoch 1"):
        next(training.run(lambda: steps.append(1)))
    assert len(steps) == 1


def test_texts_are_tokenised_some_at_a_time(scripts: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, module, sizes = TEXTS * 3, trained(scripts, corpus).module, []
    whole = module.tokens(texts, Role.QUERY)
    tokenizer = module.tokenizer

    def counted(some: list[str], **options: Any) -> Any:
        sizes.append(len(some))
        return tokenizer(some, **options)

    monkeypatch.setattr(module, "tokenizer", counted)
    counted.model_max_length, counted.pad_token_id = tokenizer.model_max_length, tokenizer.pad_token_id  # type: ignore[attr-defined]
    monkeypatch.setattr(scripts("mrl_module"), "TOKENISED", 4)
    parts = module.tokens(texts, Role.QUERY)
    assert sizes == [4, 4, 4, 3]
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


@pytest.mark.parametrize(
    ("pooling", "first"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, True),
        ({"pooling_mode": "cls"}, True),
        ({"pooling_mode": ["cls", "mean"]}, False),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, False),
        ({"pooling_mode": "mean"}, False),
        ({"pooling_mode_mean_tokens": True}, False),
    ],
)
def test_means_begin_as_what_the_base_pools(
    scripts: Any, corpus: Path, tmp_path: Path, pooling: dict[str, object], first: bool
) -> None:
    shutil.copytree(corpus / "model", tmp_path / "model")
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 32, **pooling}))
    module = scripts("mrl_module").MrlModule(tmp_path / "model", scripts("mrl_training").USUAL, 32, torch.device("cpu"))
    texts = [f"{one} {other}" for one in WORDS for other in WORDS]
    tokens, rows = module.tokens(texts, Role.DOCUMENT), torch.arange(len(texts))
    module.begin(tokens, rows)
    with torch.no_grad():
        hidden = module._hidden(*tokens.of(rows))
        normal = torch.nn.functional.normalize(hidden[:, 0], dim=1)
        means = module.projection_mean(hidden[:, 0])
        apart, wanted = torch.cdist(means, means), torch.cdist(normal, normal)
    agrees = float(torch.corrcoef(torch.stack([apart.flatten(), wanted.flatten()]))[0, 1]) > 0.99
    assert agrees == first


def test_a_pooling_that_cannot_be_read_is_told(scripts: Any, corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus / "model", tmp_path / "model")
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text("{")
    done = run(scripts, corpus, tmp_path / "mrl", "--base", str(tmp_path / "model"))
    assert done.exit_code == 1
    assert f"error: {tmp_path / 'model'}: its pooling cannot be read: " in done.output


def test_a_checkpoint_says_how_it_was_made(corpus: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "mrl")
    told = json.loads((tmp_path / "mrl" / "train_results.json").read_text())
    assert (told["base"], told["train"], told["validation"]) == (str(corpus / "model"), "train", "validation")
    assert told["base_fingerprint"] == fingerprint(corpus / "model", None)
    recipe = {"k": 6, "epochs": 2, "batch": 8, "negatives": 8, "learning_rate": 3e-3, "seed": 0, "points": False}
    assert told["recipe"].items() >= recipe.items()
    assert told["recipe"]["config"]["document_tokens"] == 128
    assert 1 <= told["epoch"] <= 2
    assert told["mrr@10"] > told["mrr@10_before"]
    # It decides nothing.
    before = load_encoder(tmp_path / "mrl").record.fingerprint
    (tmp_path / "mrl" / "train_results.json").unlink()
    assert load_encoder(tmp_path / "mrl").record.fingerprint == before


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_training_on_a_gpu(scripts: Any, corpus: Path, tmp_path: Path) -> None:
    training = trained(scripts, corpus, device="cuda", epochs=20, patience=20, learning_rate=3e-3)
    before = training.validate()
    list(training.run(lambda: None))
    assert training.validate() > before + 0.2
    module = training.module.eval()
    module.save(tmp_path, {})
    found = load_encoder(tmp_path, precision=TextPrecision.FLOAT32, device="cpu").encode(TEXTS, Role.QUERY)
    with torch.no_grad():
        mean, _ = module.gaussians(module.tokens(TEXTS, Role.QUERY), torch.arange(len(TEXTS)))
    # In bfloat16 here.
    assert float((mean.cpu() - found.means).abs().max()) < 0.1 * float(found.means.abs().max())
