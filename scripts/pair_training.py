"""What all training on pairs of queries and relevant documents shares.

A query's loss is the cross-entropy of its document among those of its batch and some drawn at random.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from beir import Beir, BeirError, Texts
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from index import GaussearchError

TOP_K = 10
BLOCK = 128
"""Queries that are ranked together: bounds memory."""

Module = TypeVar("Module", bound=nn.Module)


class TrainingError(GaussearchError):
    """A training that comes to nothing."""

    code = "bad_training"


class Pairs(NamedTuple):
    """Rows of queries (n,) and of the documents (n,) relevant to them: a query stands there once for each."""

    queries: Tensor
    documents: Tensor


def pairs_of(corpus: Beir, splits: str, queries: Texts) -> Pairs:
    """The relevant pairs of splits, as rows of `queries` and of the corpus's documents; raises BeirError."""
    rows, documents = queries.rows(), corpus.documents.rows()
    found = [
        (rows[query], documents[document])
        for query, judged in corpus.qrels(splits.split(",")).items()
        for document, relevance in judged.items()
        if relevance > 0
    ]
    if not found:
        raise BeirError(f"{corpus.folder}: no document is relevant to a query of {splits}")
    query_rows, document_rows = torch.tensor(found, dtype=torch.long).T.contiguous()
    return Pairs(query_rows, document_rows)


def scores(query: tuple[Tensor, Tensor], document: tuple[Tensor, Tensor]) -> Tensor:
    """-KL (b, n) of queries and documents, but for what is the same for all documents of a query."""
    (mean, variance), (other_mean, other_variance) = query, document
    precision = 1 / other_variance
    own = (other_mean.square() * precision + other_variance.log()).sum(1)
    return (2 * mean @ (other_mean * precision).T - (variance + mean.square()) @ precision.T - own) / 2


@torch.no_grad()
def reciprocal_rank(asked: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], pairs: Pairs) -> float:
    """MRR@10 of queries, whose Gaussians (n, k) are one for each of `pairs`, over all documents `found`.

    A tie counts against the relevant one, and so does what is no number; where its own score is none, it is not found.
    """
    best: dict[int, float] = {}
    blocks = (torch.split(each, BLOCK) for each in (*pairs, *asked))
    for rows, relevant, mean, variance in zip(*blocks, strict=True):
        all_scores = scores((mean, variance), found)
        own = all_scores.gather(1, relevant[:, None].to(mean.device))
        ranks = (~(all_scores < own)).sum(1).double().masked_fill(~own[:, 0].isfinite(), torch.inf)
        for query, rank in zip(rows.tolist(), ranks.tolist(), strict=True):
            best[query] = max(best.get(query, 0.0), 1 / rank if rank <= TOP_K else 0.0)
    return sum(best.values()) / len(best)


class OtherRelevant:
    """The documents that are relevant to queries of more than one: to none of them must its query be far."""

    def __init__(self, pairs: Pairs, documents: int) -> None:
        several = torch.bincount(pairs.queries)[pairs.queries] > 1
        self._documents = documents
        self._queries = pairs.queries[several]
        self._judged = self._queries * documents + pairs.documents[several]

    def without(self, logits: Tensor, queries: Tensor, candidates: Tensor, target: Tensor) -> Tensor:
        """Logits (b, n) of queries (b,) and candidates (n,), where those that are relevant and not at the place
        `target` (b,) are -inf."""
        rows = torch.isin(queries, self._queries).nonzero()[:, 0]
        if not len(rows):
            return logits
        others = torch.isin(queries[rows, None] * self._documents + candidates, self._judged)
        others[torch.arange(len(rows)), target[rows]] = False
        mask = torch.zeros(logits.shape, dtype=torch.bool)
        mask[rows] = others
        return logits.masked_fill(mask.to(logits.device), -torch.inf)


def rise_and_fall(step: int, steps: int, warm_up: int) -> float:
    """The share of the learning rate at a step: a short rise, then half a cosine."""
    return min(1.0, (step + 1) / warm_up) * (1 + math.cos(math.pi * step / steps)) / 2


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch came to, and whether that is the best so far."""

    number: int
    loss: float
    validation: float
    is_best: bool


@dataclass(frozen=True, slots=True)
class PairRecipe:
    """How a module is trained on pairs.

    negatives: documents drawn at random for a step, besides the relevant ones of its batch.
    """

    k: int = 128
    epochs: int = 10
    patience: int = 3
    batch: int = 512
    negatives: int = 512
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    seed: int = 0


class PairTraining(ABC, Generic[Module]):
    """Trains a module, in steps of some pairs and negatives; the best by the validation's MRR@10 is kept."""

    module: Module
    longest_gradient: float | None = None
    """Longer ones are cut."""

    def __init__(self, training: Pairs, documents: int, recipe: PairRecipe) -> None:
        """On pairs of rows, among `documents`. What it draws is the recipe's seed's."""
        self._training, self._among, self.recipe = training, documents, recipe
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self._others = OtherRelevant(training, documents)
        self.steps = max(1, len(training.queries) // recipe.batch)
        """Of an epoch."""
        self._step = 0

    @abstractmethod
    def validate(self) -> float:
        """MRR@10 of the validation."""

    @abstractmethod
    def _logits(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """Logits (b, n) of rows of queries (b,) and of documents (n,)."""

    def _optimise(self, groups: Iterable[dict[str, object]], warm_up: int) -> None:
        """Takes AdamW for groups of parameters, whose `highest` is their learning rate after so many steps."""
        self._optimiser = torch.optim.AdamW(groups, lr=self.recipe.learning_rate, betas=(0.9, 0.98))
        self._warm_up = warm_up

    def run(self, advance: Callable[[], object], best: float = -1.0) -> Iterator[Epoch]:
        """One epoch after the other, until the validation has gained nothing for `patience` of them over `best`, which
        had been reached before, and over one another.

        `advance` is called after every step. In the end the module is the best one. Raises TrainingError where a loss
        or a weight is no number.
        """
        kept, since = _copied(self.module), 0
        for number in range(1, self.recipe.epochs + 1):
            loss, validation = self._epoch(number, advance), self.validate()
            since = 0 if validation > best else since + 1
            if not since:
                best, kept = validation, _copied(self.module)
            yield Epoch(number, loss, validation, is_best=not since)
            if since == self.recipe.patience:
                break
        self.module.load_state_dict(kept)

    def _epoch(self, number: int, advance: Callable[[], object]) -> float:
        self.module.train()
        order = torch.randperm(len(self._training.queries), generator=self._generator)
        total = 0.0
        for batch in torch.split(order, self.recipe.batch)[: self.steps]:
            total += self._update(batch)
            if not math.isfinite(total):
                raise self._diverged(number)
            advance()
        # The last step may have been the first that did.
        if not all(each.isfinite().all() for each in self.module.parameters()):
            raise self._diverged(number)
        return total / self.steps

    def _diverged(self, number: int) -> TrainingError:
        return TrainingError(f"the training diverged at epoch {number}: take a lower --learning-rate")

    def _update(self, batch: Tensor) -> float:
        queries, relevant = self._training.queries[batch], self._training.documents[batch]
        drawn = torch.randint(self._among, (self.recipe.negatives,), generator=self._generator)
        candidates, places = torch.unique(torch.cat([relevant, drawn]), return_inverse=True)
        target = places[: len(batch)]
        logits = self._logits(queries, candidates)
        loss = cross_entropy(self._others.without(logits, queries, candidates, target), target.to(logits.device))
        share = rise_and_fall(self._step, self.steps * self.recipe.epochs, self._warm_up)
        for group in self._optimiser.param_groups:
            group["lr"] = group["highest"] * share
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.longest_gradient is not None:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.longest_gradient)
        self._optimiser.step()
        self._step += 1
        return loss.item()


def _copied(module: nn.Module) -> dict[str, Tensor]:
    """Its state, in the machine's memory: a GPU's may have no room for another."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in module.state_dict().items()}


def run_with_bar(training: PairTraining[Module], console: Console, best: float = -1.0) -> Iterator[Epoch]:
    """Trains, as `training.run`, and says how it goes."""
    columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("steps", total=training.recipe.epochs * training.steps, epoch=1)
        for epoch in training.run(lambda: progress.advance(task), best):
            console.print(f"epoch {epoch.number}: loss {epoch.loss:.3f}, validation MRR@10 {epoch.validation:.4f}")
            yield epoch
            progress.update(task, epoch=epoch.number + 1)
