"""Training a whole model of kind `mrl` on pairs of queries and relevant documents.

A query's loss is the cross-entropy of its document among those of its batch and some drawn at random, with -KL over a
learned temperature as logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mrl_module import MrlModule
from pair_training import Epoch, OtherRelevant, Pairs, epochs_of, reciprocal_rank, rise_and_fall, scores
from torch import Tensor
from torch.nn.functional import cross_entropy

from index.text.config import MrlConfig
from index.text.protocol import Role

SAMPLE = 4096
"""Documents by which the first projection is set."""

PROJECTIONS = 10
"""How many times as fast what is not of the transformer, and begins anew, is trained."""

WARM_UP = 0.1
"""Of all steps."""

LONGEST_GRADIENT = 1.0


USUAL = MrlConfig(document_tokens=128)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is trained.

    negatives: documents drawn at random for a step, besides the relevant ones of its batch. validate_documents: as
        many are drawn, once, to be told from the validation's relevant ones. points: all variances stay the same, so
        that -KL ranks as the distance of the means does: what the same training makes of points.
    """

    k: int = 128
    epochs: int = 10
    patience: int = 3
    batch: int = 512
    negatives: int = 512
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    validate_documents: int = 20_000
    points: bool = False
    seed: int = 0
    config: MrlConfig = USUAL


class Training:
    """Trains a model; the best by the validation's MRR@10 is kept. The seed of all that torch draws is the recipe's."""

    def __init__(
        self,
        base: Path,
        queries: Sequence[str],
        documents: Sequence[str],
        training: Pairs,
        validation: Pairs,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        """Of pairs of rows of texts. Raises ModelError where `base` holds no transformer."""
        torch.manual_seed(recipe.seed)  # dropout has no generator of its own
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self._training, self._recipe = training, recipe
        self.module = MrlModule(base, recipe.config, recipe.k, device)
        self.module.projection_var.requires_grad_(not recipe.points)
        self._queries = self.module.tokens(queries, Role.QUERY)
        self._documents = self.module.tokens(documents, Role.DOCUMENT)
        self.module.begin(self._documents, self._drawn(SAMPLE))
        self._candidates, places = torch.unique(
            torch.cat([validation.documents, self._drawn(recipe.validate_documents)]), return_inverse=True
        )
        self._validation = Pairs(validation.queries, places[: len(validation.documents)])
        self._optimiser = self._adam()
        self.steps = max(1, len(training.queries) // recipe.batch)
        """Of an epoch."""
        self._step = 0
        self._others = OtherRelevant(training, len(documents))

    def run(self, advance: Callable[[], object]) -> Iterator[Epoch]:
        """One epoch after the other, until the validation has gained nothing for `patience` of them.

        `advance` is called after every step. In the end the module is the best one.
        """
        recipe = self._recipe
        return epochs_of(self.module, recipe.epochs, recipe.patience, lambda: self._epoch(advance), self.validate)

    @torch.no_grad()
    def validate(self) -> float:
        """MRR@10 of the validation, by exact -KL over its relevant documents and those drawn for it."""
        self.module.eval()
        asked = self.module.gaussians(self._queries, self._validation.queries)
        return reciprocal_rank(asked, self.module.gaussians(self._documents, self._candidates), self._validation)

    def _drawn(self, most: int) -> Tensor:
        """Rows of documents, no two the same."""
        return torch.randperm(len(self._documents.lengths), generator=self._generator)[:most]

    def _adam(self) -> torch.optim.AdamW:
        """Weights of matrices decay; what begins anew is trained faster."""
        parts: dict[tuple[bool, bool], list[Tensor]] = {}
        for name, each in self.module.named_parameters():
            parts.setdefault((name.startswith("transformer."), each.ndim > 1), []).append(each)
        groups: list[dict[str, object]] = [
            {
                "params": params,
                "highest": self._recipe.learning_rate * (1 if old else PROJECTIONS),
                "weight_decay": self._recipe.weight_decay if is_matrix else 0.0,
            }
            for (old, is_matrix), params in parts.items()
        ]
        return torch.optim.AdamW(groups, lr=self._recipe.learning_rate, betas=(0.9, 0.98))

    def _epoch(self, advance: Callable[[], object]) -> float:
        self.module.train()
        order = torch.randperm(len(self._training.queries), generator=self._generator)
        total = 0.0
        for batch in torch.split(order, self._recipe.batch)[: self.steps]:
            total += self._update(batch)
            advance()
        return total / self.steps

    def _update(self, batch: Tensor) -> float:
        queries, relevant = self._training.queries[batch], self._training.documents[batch]
        drawn = torch.randint(len(self._documents.lengths), (self._recipe.negatives,), generator=self._generator)
        candidates, places = torch.unique(torch.cat([relevant, drawn]), return_inverse=True)
        target = places[: len(batch)]
        asked = self.module.gaussians(self._queries, queries)
        found = self.module.gaussians(self._documents, candidates)
        logits = scores(asked, found) / self.module.log_temperature.exp()
        loss = cross_entropy(self._others.without(logits, queries, candidates, target), target.to(logits.device))
        steps = self.steps * self._recipe.epochs
        share = rise_and_fall(self._step, steps, max(1, round(WARM_UP * steps)))
        for group in self._optimiser.param_groups:
            group["lr"] = group["highest"] * share
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), LONGEST_GRADIENT)
        self._optimiser.step()
        self._step += 1
        return loss.item()
