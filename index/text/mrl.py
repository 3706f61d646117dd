"""A checkpoint of Multivariate Representation Learning (Zamani & Bendersky, SIGIR 2023,
https://doi.org/10.1145/3539618.3591727), in the form in which the code of multivariate_ir, built on Tevatron, saves it:

    config.json, model weights, tokenizer  of Hugging Face; the tokenizer knows [VAR]
    query_model/, passage_model/           weights of two models, where they are not one
    projection_mean                        state dict of a linear layer without bias, from torch.save
    projection_var                         the same; in a sequence with softplus, or of the variance's logarithm
    pooler.pt, pooler_config.json          of a linear layer over [CLS], where there is one

A text is read as "[CLS] [VAR] text [SEP]": its mean is projected from the first token, its variance from the second.
"""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, softplus

from index.errors import ModelError
from index.records import ModelRecord
from index.text.batched import BatchedEncoder, readable
from index.text.config import MrlConfig
from index.text.protocol import Role
from index.text.quiet import no_bars
from index.text.references import MEAN_FILE, VARIANCE_FILE
from index.text.weights import broken, detach_from_files, every_weight

__all__ = ["MrlEncoder", "Projections"]

VARIANCE_TOKEN: Final = "[VAR]"  # noqa: S105 (no password)
FOLDERS: Final = {Role.QUERY: "query_model", Role.DOCUMENT: "passage_model"}
POOLERS: Final = {Role.QUERY: "linear_q", Role.DOCUMENT: "linear_p"}


class Projections:
    """The linear layers of a checkpoint: (k, d) of means and of variances, and how they are read."""

    def __init__(self, folder: Path, config: MrlConfig) -> None:
        """Raises ModelError where a file is missing, is no state dict, or does not go with the others."""
        self.config = config
        self.mean = _only(folder / MEAN_FILE, {"weight"})[1]
        # nn.Sequential(Linear, Softplus) numbers its layers; a logarithm is a layer alone.
        name, self.variance = _only(folder / VARIANCE_FILE, {"0.weight", "weight"})
        self.is_logarithm = name == "weight"
        self.pooler = _pooler(folder)
        if self.mean.ndim != 2 or self.mean.shape != self.variance.shape:
            raise ModelError(f"{folder}: {MEAN_FILE} and {VARIANCE_FILE} must have one shape, (k, d)")

    def to(self, device: torch.device) -> "Projections":
        """Moves them to a device."""
        self.mean, self.variance = self.mean.to(device), self.variance.to(device)
        self.pooler = {
            name: tensor.to(device) if isinstance(tensor, Tensor) else tensor for name, tensor in self.pooler.items()
        }
        return self

    def gaussians(self, first: Tensor, second: Tensor, role: Role) -> tuple[Tensor, Tensor]:
        """Means and variances (n, k) of the last hidden states (n, d) of [CLS] and [VAR]."""
        mean = linear(self._pooled(first, role), self.mean)
        bound = float(np.sqrt(self.config.c))
        if self.config.clamp_mean == "clamp":
            mean = mean.clamp(-bound, bound)
        elif self.config.clamp_mean == "scale":
            mean = mean * (self.config.c / torch.linalg.vector_norm(mean, dim=1, keepdim=True))
        spread = linear(second, self.variance)
        return mean, spread.exp() if self.is_logarithm else softplus(spread, beta=self.config.beta)

    def _pooled(self, first: Tensor, role: Role) -> Tensor:
        if not self.pooler:
            return first
        layer = POOLERS[role]
        pooled = linear(first, self.pooler[f"{layer}.weight"], self.pooler[f"{layer}.bias"])
        return normalize(pooled, dim=-1) if self.pooler["normalize"] else pooled


class MrlEncoder(BatchedEncoder):
    """A checkpoint of multivariate_ir."""

    def __init__(
        self,
        record: ModelRecord,
        folder: Path,
        projections: Projections,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Raises ModelError where the checkpoint is not whole."""
        super().__init__(record, device)
        self._projections = projections.to(device)
        self._tokenizer, self._models = _load(folder, device, dtype)
        self._require_width(folder)

    def _require_width(self, folder: Path) -> None:
        """Raises ModelError where the projections are not of the models' width."""
        width = self._projections.mean.shape[1]
        for model in self._models.values():
            states = getattr(model.config, "hidden_size", width)
            if states != width:
                raise ModelError(
                    f"{folder}: {MEAN_FILE} is of {width} dimensions, and the hidden states of its model have {states}"
                )

    def _gaussians(self, texts: list[str], role: Role) -> tuple[Tensor, Tensor]:
        config = self._projections.config
        most = config.query_tokens if role is Role.QUERY else config.document_tokens
        most = min(most, self._tokenizer.model_max_length)
        batch = self._tokenizer(
            [f"{VARIANCE_TOKEN} {text}" for text in readable(texts, most)],
            truncation=True,
            max_length=most,
            padding=True,
            return_token_type_ids=False,
            return_tensors="pt",
        ).to(self.device)
        hidden = self._models[role](**batch).last_hidden_state
        return self._projections.gaussians(hidden[:, 0].float(), hidden[:, 1].float(), role)


def _load(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, dict[Role, Any]]:
    """The tokenizer, and the model of each role. No code of the folder is run, and nobody is asked whether to."""
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise ModelError("models of texts need transformers: pip install 'gaussearch[text]'") from error
    separate = (folder / FOLDERS[Role.QUERY]).is_dir()
    models: dict[Role, Any] = {}
    what = f"{folder}: transformers cannot load it"
    options = {"local_files_only": True, "trust_remote_code": False}
    with broken(what):
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        # A pooler is of no use here: only hidden states are read.
        with no_bars(), every_weight(what):
            for role in Role:
                where = folder / FOLDERS[role] if separate else folder
                if separate or not models:
                    models[role] = AutoModel.from_pretrained(where, **options).to(device, dtype).eval()
                    detach_from_files(models[role])
                else:
                    models[role] = next(iter(models.values()))
        read = tokenizer(f"{VARIANCE_TOKEN} text")["input_ids"]
    if len(read) < 2 or read[1] != tokenizer.get_vocab().get(VARIANCE_TOKEN):
        raise ModelError(
            f"{folder}: its tokenizer does not put {VARIANCE_TOKEN} second in a text, whence variances come"
        )
    return tokenizer, models


def _only(path: Path, names: set[str]) -> tuple[str, Tensor]:
    """The one tensor of a state dict, and its name."""
    state = _state(path)
    if len(state) != 1 or not set(state) <= names:
        raise ModelError(
            f"{path}: it has {', '.join(map(repr, state)) or 'nothing'}; a layer without bias has 'weight'"
        )
    ((name, tensor),) = state.items()
    return name, tensor


def _pooler(folder: Path) -> dict[str, Any]:
    """The tensors of the pooler, and whether its output is normalised; nothing where there is none."""
    path, described = folder / "pooler.pt", folder / "pooler_config.json"
    if not path.exists() or not described.exists():
        return {}
    state: dict[str, Any] = dict(_state(path))
    missing = {f"{layer}.{part}" for layer in POOLERS.values() for part in ("weight", "bias")} - set(state)
    if missing:
        raise ModelError(f"{path}: there is no {sorted(missing)[0]!r}")
    with broken(f"{described}: cannot be read"):
        return {**state, "normalize": bool(json.loads(described.read_bytes()).get("normalize", False))}


def _state(path: Path) -> dict[str, Tensor]:
    """A state dict. Whatever else its pickle would do is refused."""
    if not path.exists():
        raise ModelError(f"{path}: it is not there, and is a part of a checkpoint")
    with broken(f"{path}: torch cannot load it as weights"):
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ModelError(f"{path}: it is no state dict of tensors")
    return {name: tensor.float() for name, tensor in state.items()}
