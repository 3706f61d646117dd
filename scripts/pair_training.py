"""What all training on pairs of queries and relevant documents shares: scores, masks, rounds, and how they are told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from beir import Beir, BeirError, Texts
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

TOP_K = 10
BLOCK = 128
"""Queries that are ranked together: bounds memory."""


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

    A tie counts against the relevant one, and so does what is no number.
    """
    best: dict[int, float] = {}
    blocks = (torch.split(each, BLOCK) for each in (*pairs, *asked))
    for rows, relevant, mean, variance in zip(*blocks, strict=True):
        all_scores = scores((mean, variance), found)
        ranks = (~(all_scores < all_scores.gather(1, relevant[:, None].to(mean.device)))).sum(1)
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


def epochs_of(
    module: nn.Module, most: int, patience: int, once: Callable[[], float], reached: Callable[[], float]
) -> Iterator[Epoch]:
    """One epoch after the other, until `reached`, of the validation, has gained nothing for `patience` of them.

    `once` trains for an epoch and returns its loss. In the end the module is the best one.
    """
    best, kept, since = -1.0, _copied(module), 0
    for number in range(1, most + 1):
        loss, validation = once(), reached()
        since = 0 if validation > best else since + 1
        if not since:
            best, kept = validation, _copied(module)
        yield Epoch(number, loss, validation, is_best=not since)
        if since == patience:
            break
    module.load_state_dict(kept)


def _copied(module: nn.Module) -> dict[str, Tensor]:
    """Its state, in the machine's memory: a GPU's may have no room for another."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in module.state_dict().items()}


class Run(Protocol):
    """A training."""

    steps: int
    """Of an epoch."""

    def run(self, advance: Callable[[], object]) -> Iterator[Epoch]:
        """Trains; `advance` is called after every step."""
        ...


def told(training: Run, epochs: int, console: Console) -> Iterator[Epoch]:
    """Trains, and says how it goes."""
    columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("steps", total=epochs * training.steps, epoch=1)
        for epoch in training.run(lambda: progress.advance(task)):
            console.print(f"epoch {epoch.number}: loss {epoch.loss:.3f}, validation MRR@10 {epoch.validation:.4f}")
            yield epoch
            progress.update(task, epoch=epoch.number + 1)
