"""Training two linear heads, of means and of variances, on features of queries and of their relevant documents.

A query's loss is the cross-entropy of its document among those of its batch and some drawn at random, with -KL over a
learned temperature as logits. Heads begin as the documents' principal components, with one variance for all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, softplus

FIRST_SCALE = 3.0
FIRST_VARIANCE = 0.3
"""Which makes -KL of unit vectors some 15 times their cosine: a temperature at which the first gradients are large."""

WARM_UP = 50
TOP_K = 10
BLOCK = 128
"""Queries that are ranked together: bounds memory."""


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


class Pairs(NamedTuple):
    """Rows of queries (n,) and of the documents (n,) relevant to them: a query stands there once for each."""

    queries: Tensor
    documents: Tensor


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


def scores(query: tuple[Tensor, Tensor], document: tuple[Tensor, Tensor]) -> Tensor:
    """-KL (b, n) of queries and documents, but for what is the same for all documents of a query."""
    (mean, variance), (other_mean, other_variance) = query, document
    precision = 1 / other_variance
    own = (other_mean.square() * precision + other_variance.log()).sum(1)
    return (2 * mean @ (other_mean * precision).T - (variance + mean.square()) @ precision.T - own) / 2


@torch.no_grad()
def reciprocal_rank(heads: Heads, queries: Tensor, documents: Tensor, pairs: Pairs) -> float:
    """MRR@10 of the queries of `pairs` over all documents; a tie counts against the relevant one."""
    found = heads.document(documents)
    best: dict[int, float] = {}
    for rows, relevant in zip(torch.split(pairs.queries, BLOCK), torch.split(pairs.documents, BLOCK), strict=True):
        all_scores = scores(heads.query(queries[rows]), found)
        ranks = (all_scores >= all_scores.gather(1, relevant[:, None])).sum(1)
        for query, rank in zip(rows.tolist(), ranks.tolist(), strict=True):
            best[query] = max(best.get(query, 0.0), 1 / rank if rank <= TOP_K else 0.0)
    return sum(best.values()) / len(best)


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch came to."""

    number: int
    loss: float
    validation: float


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
        self._several = _with_several(training)

    def run(self, advance: Callable[[], object]) -> Iterator[Epoch]:
        """One epoch after the other, until the validation has gained nothing for `patience` of them.

        `advance` is called after every step. In the end the heads are the best ones.
        """
        best, kept, since = -1.0, copy.deepcopy(self.heads.state_dict()), 0
        for number in range(self._recipe.epochs):
            loss = self._epoch(advance)
            reached = reciprocal_rank(self.heads, self._queries, self._documents, self._validation)
            yield Epoch(number + 1, loss, reached)
            if reached > best:
                best, kept, since = reached, copy.deepcopy(self.heads.state_dict()), 0
            else:
                since += 1
            if since == self._recipe.patience:
                break
        self.heads.load_state_dict(kept)

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
        loss = cross_entropy(self._without_other_relevant(logits, queries, candidates, target), target)
        for group in self._optimiser.param_groups:
            group["lr"] = self._recipe.learning_rate * self._share()
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self._step += 1
        return loss.item()

    def _noisy(self, features: Tensor) -> Tensor:
        deviation = self._recipe.noise / math.sqrt(features.shape[1])
        return features + deviation * torch.randn(features.shape, generator=self._generator)

    def _share(self) -> float:
        """Of the learning rate: a short rise, then half a cosine."""
        done = self._step / (self.steps * self._recipe.epochs)
        return min(1.0, (self._step + 1) / WARM_UP) * (1 + math.cos(math.pi * done)) / 2

    def _without_other_relevant(self, logits: Tensor, queries: Tensor, candidates: Tensor, target: Tensor) -> Tensor:
        """A query's other relevant documents are none that it must be far from."""
        rows = torch.isin(queries, self._several.queries).nonzero()[:, 0]
        if not len(rows):
            return logits
        size = len(self._documents)
        judged = self._several.queries * size + self._several.documents
        others = torch.isin(queries[rows, None] * size + candidates, judged)
        others[torch.arange(len(rows)), target[rows]] = False
        mask = torch.zeros_like(logits, dtype=torch.bool)
        mask[rows] = others
        return logits.masked_fill(mask, -torch.inf)


def _with_several(pairs: Pairs) -> Pairs:
    """The pairs of queries that have more than one."""
    several = torch.bincount(pairs.queries)[pairs.queries] > 1
    return Pairs(pairs.queries[several], pairs.documents[several])
