"""Training a whole model of kind `mrl` on pairs of queries and relevant documents.

Logits are -KL over a learned temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mrl_module import MrlModule
from pair_training import PairRecipe, Pairs, PairTraining, reciprocal_rank, scores
from torch import Tensor

from index.text.config import MrlConfig
from index.text.protocol import Role

SAMPLE = 4096
"""Documents by which the first projection is set."""

PROJECTIONS = 10
"""How many times as fast what is not of the transformer, and begins anew, is trained."""

WARM_UP = 0.1
"""Of all steps."""

USUAL = MrlConfig(document_tokens=128)


@dataclass(frozen=True, slots=True)
class Recipe(PairRecipe):
    """How a model is trained.

    validate_documents: as many are drawn, once, to be told from the validation's relevant ones. points: all variances
        stay the same, so that -KL ranks as the distance of the means does: what the same training makes of points.
    """

    validate_documents: int = 20_000
    points: bool = False
    config: MrlConfig = USUAL


class Training(PairTraining[MrlModule]):
    """Trains a model. The seed of all that torch draws is the recipe's."""

    recipe: Recipe
    longest_gradient = 1.0

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
        super().__init__(training, len(documents), recipe)
        self.module = MrlModule(base, recipe.config, recipe.k, device)
        self.module.projection_var.requires_grad_(not recipe.points)
        self._queries = self.module.tokens(queries, Role.QUERY)
        self._documents = self.module.tokens(documents, Role.DOCUMENT)
        self.module.begin(self._documents, self._drawn(SAMPLE))
        self._candidates, places = torch.unique(
            torch.cat([validation.documents, self._drawn(recipe.validate_documents)]), return_inverse=True
        )
        self._validation = Pairs(validation.queries, places[: len(validation.documents)])
        self._optimise(self._groups(), max(1, round(WARM_UP * self.steps * recipe.epochs)))

    @torch.no_grad()
    def validate(self) -> float:
        """MRR@10 of the validation, by exact -KL over its relevant documents and those drawn for it."""
        self.module.eval()
        asked = self.module.gaussians(self._queries, self._validation.queries)
        return reciprocal_rank(asked, self.module.gaussians(self._documents, self._candidates), self._validation)

    def _drawn(self, most: int) -> Tensor:
        """Rows of documents, no two the same."""
        return torch.randperm(len(self._documents.lengths), generator=self._generator)[:most]

    def _logits(self, queries: Tensor, candidates: Tensor) -> Tensor:
        asked = self.module.gaussians(self._queries, queries)
        found = self.module.gaussians(self._documents, candidates)
        return scores(asked, found) / self.module.log_temperature.exp()

    def _groups(self) -> list[dict[str, object]]:
        """Weights of matrices decay; what begins anew is trained faster."""
        parts: dict[tuple[bool, bool], list[Tensor]] = {}
        for name, each in self.module.named_parameters():
            parts.setdefault((name.startswith("transformer."), each.ndim > 1), []).append(each)
        return [
            {
                "params": params,
                "highest": self.recipe.learning_rate * (1 if old else PROJECTIONS),
                "weight_decay": self.recipe.weight_decay if is_matrix else 0.0,
            }
            for (old, is_matrix), params in parts.items()
        ]
