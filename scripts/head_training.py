"""Training two linear heads, of means and of variances, on features of queries and of their relevant documents.

A query's loss is the cross-entropy of its document among those of its batch and some drawn at random, with -KL over a
learned temperature as logits. Heads begin as the documents' principal components, with one variance for all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from pair_training import Epoch, OtherRelevant, Pairs, epochs_of, reciprocal_rank, rise_and_fall, scores
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, softplus

FIRST_SCALE = 3.0
FIRST_VARIANCE = 0.3
"""Which makes -KL of unit vectors some 15 times their cosine: a temperature at which the first gradients are large."""

WARM_UP = 50


@dataclass(frozen=True, slots=True)
class Recipe:
    """How heads are trained.

    noise: length of the random vector that is added to every embedding, which is one long, anew in each step: as it
        were more pairs. tied: queries have the documents' heads, and not their own.
    """

    k: int = 128
    epochs: int = 10
    patience: int = 3
    batch: int = 512
    negatives: int = 2048
    learning_rate: float = 4e-3
    weight_decay: float = 0.0
    noise: float = 0.5
    beta: float = 2.5
    tied: bool = False
    seed: int = 0


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


@torch.no_grad()
def rank_of(heads: Heads, queries: Tensor, documents: Tensor, pairs: Pairs) -> float:
    """MRR@10 of the queries of `pairs` over all documents."""
    return reciprocal_rank(heads.query(queries[pairs.queries]), heads.document(documents), pairs)


class Training:
    """Trains heads on features; the best of them by the validation's MRR@10 are kept."""

    def __init__(self, queries: Tensor, documents: Tensor, training: Pairs, validation: Pairs, recipe: Recipe) -> None:
        self._queries, self._documents, self._recipe = queries, documents, recipe
        self._training, self._validation = training, validation
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self.heads = Heads(documents, recipe)
        parts: list[dict[str, object]] = [
            {
                "params": [each for each in self.heads.parameters() if each.ndim > 1],
                "weight_decay": recipe.weight_decay,
            },
            {"params": [each for each in self.heads.parameters() if each.ndim <= 1], "weight_decay": 0.0},
        ]
        self._optimiser = torch.optim.AdamW(parts, lr=recipe.learning_rate, betas=(0.9, 0.98))
        self.steps = max(1, len(training.queries) // recipe.batch)
        """Of an epoch."""
        self._step = 0
        self._others = OtherRelevant(training, len(documents))

    def run(self, advance: Callable[[], object]) -> Iterator[Epoch]:
        """One epoch after the other, until the validation has gained nothing for `patience` of them.

        `advance` is called after every step. In the end the heads are the best ones.
        """
        return epochs_of(
            self.heads,
            self._recipe.epochs,
            self._recipe.patience,
            lambda: self._epoch(advance),
            lambda: rank_of(self.heads, self._queries, self._documents, self._validation),
        )

    def _epoch(self, advance: Callable[[], object]) -> float:
        order = torch.randperm(len(self._training.queries), generator=self._generator)
        total = 0.0
        for batch in torch.split(order, self._recipe.batch)[: self.steps]:
            total += self._update(batch)
            advance()
        return total / self.steps

    def _update(self, batch: Tensor) -> float:
        queries, relevant = self._training.queries[batch], self._training.documents[batch]
        drawn = torch.randint(len(self._documents), (self._recipe.negatives,), generator=self._generator)
        candidates, places = torch.unique(torch.cat([relevant, drawn]), return_inverse=True)
        found = self.heads.document(self._noisy(self._documents[candidates]))
        logits = scores(self.heads.query(self._noisy(self._queries[queries])), found) / self.heads.log_temperature.exp()
        target = places[: len(batch)]
        loss = cross_entropy(self._others.without(logits, queries, candidates, target), target)
        share = rise_and_fall(self._step, self.steps * self._recipe.epochs, WARM_UP)
        for group in self._optimiser.param_groups:
            group["lr"] = self._recipe.learning_rate * share
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self._step += 1
        return loss.item()

    def _noisy(self, features: Tensor) -> Tensor:
        deviation = self._recipe.noise / math.sqrt(features.shape[1])
        return features + deviation * torch.randn(features.shape, generator=self._generator)
