"""Training two linear heads, of means and of variances, on features of queries and of their relevant documents.

Logits are -KL over a learned temperature. Heads begin as the documents' principal components, with one variance for
all.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from pair_training import PairRecipe, Pairs, PairTraining, reciprocal_rank, scores
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

FIRST_SCALE = 3.0
FIRST_VARIANCE = 0.3
"""Which makes -KL of unit vectors some 15 times their cosine: a temperature at which the first gradients are large."""

WARM_UP = 50


@dataclass(frozen=True, slots=True)
class Recipe(PairRecipe):
    """How heads are trained.

    noise: length of the random vector that is added to every embedding, which is one long, anew in each step: as it
        were more pairs. tied: queries have the documents' heads, and not their own.
    """

    negatives: int = 2048
    learning_rate: float = 4e-3
    weight_decay: float = 0.0
    noise: float = 0.5
    beta: float = 2.5
    tied: bool = False


class Head(nn.Module):
    """A mean and a variance of features: A x + a, softplus(B x + b)."""

    def __init__(self, basis: Tensor, center: Tensor, beta: float) -> None:
        """Means are the coordinates of features around `center` (d,) in `basis` (k, d); variances are all the same."""
        super().__init__()
        self.beta = beta
        self.mean = nn.Parameter(FIRST_SCALE * basis)
        self.mean_bias = nn.Parameter(-FIRST_SCALE * basis @ center)
        self.variance = nn.Parameter(torch.zeros_like(basis))
        self.variance_bias = nn.Parameter(torch.full((len(basis),), math.log(math.expm1(beta * FIRST_VARIANCE)) / beta))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances (n, k) of features (n, d)."""
        variances = softplus(linear(features, self.variance, self.variance_bias), beta=self.beta)
        return linear(features, self.mean, self.mean_bias), variances


class Heads(nn.Module):
    """Those of queries and of documents, and the temperature of training."""

    def __init__(self, documents: Tensor, recipe: Recipe) -> None:
        super().__init__()
        center = documents.mean(0)
        # eigh's order is from the smallest.
        basis = torch.linalg.eigh(torch.cov(documents.T, correction=0)).eigenvectors.T[-recipe.k :].contiguous()
        self.document = Head(basis, center, recipe.beta)
        self.query = self.document if recipe.tied else copy.deepcopy(self.document)
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def tensors(self) -> dict[str, Tensor]:
        """What head.safetensors holds."""
        heads = {"": self.document} if self.query is self.document else {"": self.document, "query.": self.query}
        return {
            prefix + name.replace("_", ".") if name.endswith("bias") else f"{prefix}{name}.weight": tensor.detach()
            for prefix, head in heads.items()
            for name, tensor in head.named_parameters()
        }


class Training(PairTraining[Heads]):
    """Trains heads on features."""

    recipe: Recipe

    def __init__(self, queries: Tensor, documents: Tensor, training: Pairs, validation: Pairs, recipe: Recipe) -> None:
        super().__init__(training, len(documents), recipe)
        self._queries, self._documents, self._validation = queries, documents, validation
        self.module = Heads(documents, recipe)
        matrices = [each for each in self.module.parameters() if each.ndim > 1]
        others = [each for each in self.module.parameters() if each.ndim <= 1]
        groups: list[dict[str, object]] = [
            {"params": matrices, "highest": recipe.learning_rate, "weight_decay": recipe.weight_decay},
            {"params": others, "highest": recipe.learning_rate, "weight_decay": 0.0},
        ]
        self._optimise(groups, WARM_UP)

    @torch.no_grad()
    def validate(self) -> float:
        """MRR@10 of the validation, by exact -KL over all documents."""
        asked = self.module.query(self._queries[self._validation.queries])
        return reciprocal_rank(asked, self.module.document(self._documents), self._validation)

    def _logits(self, queries: Tensor, candidates: Tensor) -> Tensor:
        found = self.module.document(self._noisy(self._documents[candidates]))
        asked = self.module.query(self._noisy(self._queries[queries]))
        return scores(asked, found) / self.module.log_temperature.exp()

    def _noisy(self, features: Tensor) -> Tensor:
        deviation = self.recipe.noise / math.sqrt(features.shape[1])
        return features + deviation * torch.randn(features.shape, generator=self._generator)
