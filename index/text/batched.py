"""What encoders share: batches of texts of about a length, the device and its precision, and Gaussians out of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from index.cores import torch_on_all_cores
from index.gaussians import Gaussians
from index.records import ModelRecord
from index.text.panics import Panics
from index.text.protocol import Role

__all__ = ["LEAST_VARIANCE", "BatchedEncoder", "readable"]

BATCH_TEXTS: Final = {"cpu": 32, "cuda": 256}
"""Texts that go through a model together. On a CPU more gain nothing, and longer ones lie in its caches no more."""

LEAST_VARIANCE: Final = 1e-10
"""What a variance is at least: softplus underflows. The bound is that of the training code of multivariate_ir."""

LETTERS_A_TOKEN: Final = 100
"""Letters of a text that are tokenised for each token that a model reads of it, and for SPARE_TOKENS more. Tokens of
texts have about four. One of a hundred is a word that a tokenizer knows nothing of, or white space: a text of hundreds
of those in a row, which it would take to read another token, says as little either way."""
SPARE_TOKENS: Final = 64
MOST_TOKENS: Final = 2**20
"""A model that reads more reads all: 10^30 is what tokenizers without a limit say."""


def readable(texts: Sequence[str], tokens: float | None) -> list[str]:
    """The texts, cut behind what a model reads that reads so many tokens: a tokenizer takes seconds and gigabytes for
    a text of megabytes, of which little more than nothing is read."""
    if tokens is None or tokens > MOST_TOKENS:
        return list(texts)
    letters = LETTERS_A_TOKEN * (int(tokens) + SPARE_TOKENS)
    return [text[:letters] for text in texts]


class BatchedEncoder(ABC):
    """A TextEncoder that reads one batch of texts of about one length after the other."""

    def __init__(self, record: ModelRecord, device: torch.device) -> None:
        self._record = record
        self.device = device

    @property
    def record(self) -> ModelRecord:
        """Which model it is, and its k."""
        return self._record

    def encode(self, texts: Sequence[str], role: Role) -> Gaussians:
        """As TextEncoder.encode; raises ModelError where the tokenizer breaks down."""
        means, variances = (torch.empty(len(texts), self._record.k) for _ in range(2))
        # All cores, also where --threads gives a search fewer: searches run side by side, and batches of texts go
        # through a model one after the other.
        with Panics(f"{self._record.name}: it cannot read a text"), torch_on_all_cores(), torch.inference_mode():
            for rows in _by_length(texts, BATCH_TEXTS[self.device.type]):
                mean, variance = self._gaussians([texts[row] for row in rows], Role(role))
                means[rows] = mean.float().cpu()
                variances[rows] = variance.float().cpu().clamp_(min=LEAST_VARIANCE)
        # Copies, since what inference mode makes is of no use to whoever trains on it.
        return Gaussians(means.clone(), variances.clone())

    @abstractmethod
    def _gaussians(self, texts: list[str], role: Role) -> tuple[Tensor, Tensor]:
        """Means and variances (b, k) of one batch, on the device."""


def _by_length(texts: Sequence[str], size: int) -> Iterator[list[int]]:
    """The rows of the texts in batches, longest first: what does not fit into memory fails at once, and little of a
    batch is padding."""
    rows = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    for first in range(0, len(rows), size):
        yield rows[first : first + size]
