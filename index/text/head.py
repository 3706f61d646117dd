"""Two linear heads over the sentence embeddings x of a frozen model: mean = A x + a, variance = softplus(B x + b).

The form of Multivariate Representation Learning (Zamani & Bendersky, SIGIR 2023, https://doi.org/10.1145/3539618.3591727)
with the model beneath it left as it is. head.safetensors holds, in any floating point:

    mean.weight      (k, d)     mean.bias      (k,), optional
    variance.weight  (k, d)     variance.bias  (k,), optional

and, where queries have heads of their own, the same with `query.` before their names.
"""

from pathlib import Path
from typing import Final, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear, softplus

from index.errors import ModelError
from index.records import ModelRecord
from index.text.batched import BatchedEncoder
from index.text.config import HeadConfig
from index.text.protocol import Role
from index.text.references import HEAD_FILE
from index.text.sentences import SentenceModel
from index.text.weights import broken

__all__ = ["HEAD_FILE", "Head", "HeadEncoder", "Heads"]

NAMES: Final = ("mean.weight", "mean.bias", "variance.weight", "variance.bias")


class Head(NamedTuple):
    """Weights (k, d) and biases (k,) of a mean and of what softplus makes a variance."""

    mean: Tensor
    mean_bias: Tensor | None
    variance: Tensor
    variance_bias: Tensor | None

    def to(self, device: torch.device) -> "Head":
        """The same on a device."""
        mean_bias, variance_bias = (
            None if bias is None else bias.to(device) for bias in (self.mean_bias, self.variance_bias)
        )
        return Head(self.mean.to(device), mean_bias, self.variance.to(device), variance_bias)

    def gaussians(self, features: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """Means and variances (n, k) of features (n, d)."""
        variances = softplus(linear(features, self.variance, self.variance_bias), beta=beta)
        return linear(features, self.mean, self.mean_bias), variances


class Heads(NamedTuple):
    """The heads of queries and of documents; one where they are the same."""

    query: Head
    document: Head

    @classmethod
    def load(cls, path: Path) -> "Heads":
        """Those of a file; raises ModelError where it cannot be read, or lacks or has what it should not."""
        with broken(f"{path}: cannot be read as safetensors"):
            # Copies, because the file is mapped: see index.text.weights.
            tensors = {name: tensor.float().clone() for name, tensor in load_file(path).items()}
        unknown = set(tensors) - {prefix + name for prefix in ("", "query.") for name in NAMES}
        if unknown:
            raise ModelError(f"{path}: there is a tensor {sorted(unknown)[0]!r}, which no head has")
        document = _head(path, tensors, "")
        query = _head(path, tensors, "query.") if any(name.startswith("query.") for name in tensors) else document
        if query.mean.shape != document.mean.shape:
            raise ModelError(f"{path}: the heads of queries and of documents have different shapes")
        return cls(query, document)

    def to(self, device: torch.device) -> "Heads":
        """The same on a device."""
        return Heads(self.query.to(device), self.document.to(device))


class HeadEncoder(BatchedEncoder):
    """A frozen model, and heads over it."""

    def __init__(
        self,
        record: ModelRecord,
        config: HeadConfig,
        heads: Heads,
        base: SentenceModel,
        device: torch.device,
    ) -> None:
        """Raises ModelError where the heads are not of the base's width."""
        super().__init__(record, device)
        self._config, self._heads, self._base = config, heads.to(device), base
        if heads.document.mean.shape[1] != base.dimensions:
            raise ModelError(
                f"{record.name}: its heads are of {heads.document.mean.shape[1]} dimensions, and its base has "
                f"{base.dimensions}"
            )

    def _gaussians(self, texts: list[str], role: Role) -> tuple[Tensor, Tensor]:
        features = self._base.embeddings(texts, role)
        head = self._heads.query if role is Role.QUERY else self._heads.document
        return head.gaussians(features.float(), self._config.beta)


def _head(path: Path, tensors: dict[str, Tensor], prefix: str) -> Head:
    mean, mean_bias, variance, variance_bias = (tensors.get(prefix + name) for name in NAMES)
    if mean is None or variance is None:
        raise ModelError(f"{path}: there is no {prefix}mean.weight or no {prefix}variance.weight")
    biases = [bias for bias in (mean_bias, variance_bias) if bias is not None]
    if mean.ndim != 2 or mean.shape != variance.shape or any(bias.shape != mean.shape[:1] for bias in biases):
        raise ModelError(f"{path}: weights must be (k, d) and biases (k,), of one k and d")
    return Head(mean, mean_bias, variance, variance_bias)
