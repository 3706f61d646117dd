"""Models of texts in the forms in which they come, small and random: how they are read is what is tested."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

__all__ = ["WIDTH", "WORDS", "K", "bert", "head_model", "mrl_checkpoint", "sentence_model", "tokenizer"]

WIDTH, K = 32, 6
WORDS = [
    *("a", "bit", "of", "metal", "held", "in", "horse", "mouth", "used", "to", "control", "the", "ride"),
    *("bread", "is", "food", "baked", "from", "flour", "wheel", "car"),
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer(folder: Path, *more: str) -> PreTrainedTokenizerFast:
    """Saves a tokenizer of WORDS, which also knows `more` as special tokens."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *WORDS, "##s"])}
    made = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )
    if more:
        fast.add_special_tokens({"additional_special_tokens": list(more)})
    fast.save_pretrained(folder)
    return fast


def bert(folder: Path, tokens: int, seed: int, spread: float = 0.5) -> Any:
    """Saves a random transformer. With a `spread` of weights as small as those of models have it can be trained, and
    makes about the same of all texts."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=tokens,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=spread,
    )
    model: Any = BertModel(config)
    model.save_pretrained(folder)
    return model.eval()


def sentence_model(folder: Path, seed: int = 0, spread: float = 0.5) -> Path:
    """A sentence-transformers model: mean pooling, then length one, as all-MiniLM-L6-v2 has it."""
    folder.mkdir(parents=True)
    bert(folder, len(tokenizer(folder)), seed, spread)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def head_model(folder: Path, tensors: dict[str, torch.Tensor] | None = None, seed: int = 0) -> Path:
    """A sentence model with heads over it; `tensors` are further ones of its file, or take the place of some."""
    sentence_model(folder / "base", seed)
    torch.manual_seed(seed)
    weights = {"mean.weight": torch.randn(K, WIDTH), "variance.weight": torch.randn(K, WIDTH)}
    save_file({**weights, **(tensors or {})}, folder / "head.safetensors")
    (folder / "encoder.json").write_text(json.dumps({"format": 1, "encoder": "head", "base": "base", "beta": 1.5}))
    return folder


def mrl_checkpoint(
    folder: Path, *, logarithm: bool = False, untied: bool = False, pooled: bool = False, beta: float = 2.5
) -> Any:
    """Saves a checkpoint as MVRLDenseModel.save of multivariate_ir does; the module that it was saved from."""
    folder.mkdir(parents=True)
    tokens = len(tokenizer(folder, "[VAR]"))
    names = ("query_model", "passage_model") if untied else (".", ".")
    model: Any = nn.Module()
    model.query = bert(folder / names[0], tokens, 1)
    model.passage = bert(folder / names[1], tokens, 2) if untied else model.query
    model.projection_mean = nn.Linear(WIDTH, K, bias=False)
    linear = nn.Linear(WIDTH, K, bias=False)
    model.projection_var = linear if logarithm else nn.Sequential(linear, nn.Softplus(beta=beta))
    if pooled:
        model.linear_q, model.linear_p = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        state = {
            f"{name}.{key}": value
            for name in ("linear_q", "linear_p")
            for key, value in getattr(model, name).state_dict().items()
        }
        torch.save(state, folder / "pooler.pt")
        config = {"input_dim": WIDTH, "output_dim": WIDTH, "tied": False, "normalize": True}
        (folder / "pooler_config.json").write_text(json.dumps(config))
    torch.save(model.projection_mean.state_dict(), folder / "projection_mean")
    torch.save(model.projection_var.state_dict(), folder / "projection_var")
    return model
