"""A frozen model without training: the mean is its sentence embedding, the variance how far its tokens scatter.

Token vectors h of a text with mean m, over d dimensions: a token's scatter in units of the embedding is
s = Var(h) / |m|^2, whose sum over the dimensions is about TYPICAL. The variance is shrunken towards a constant,

    variance = SCALE / d * ((1 - WEIGHT) + WEIGHT * s * d / TYPICAL),

so that it is never below (1 - WEIGHT) SCALE / d: with WEIGHT = 0 all are alike, and -KL ranks as the cosine does. A
weight that grew with the number of tokens would make length a prior of documents, and does worse.

The constants were chosen on WordNet's training and validation queries with all-MiniLM-L6-v2 (scripts/text_quality.py
measures what they are worth): of SCALE from 10 to 40 and WEIGHT from 0.06 to 0.14 all do about as well.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from index.records import ModelRecord
from index.text.batched import BatchedEncoder
from index.text.protocol import Role
from index.text.sentences import SentenceModel

__all__ = ["PooledEncoder", "shrunken"]

SCALE: Final = 30.0
TYPICAL: Final = 1.5
WEIGHT: Final = 0.1

LEAST_LENGTH: Final = 1e-12
"""Of |m|^2, by which is divided."""


class PooledEncoder(BatchedEncoder):
    """A sentence-transformers model whose token vectors say how sure a text is."""

    def __init__(self, record: ModelRecord, base: SentenceModel, device: torch.device) -> None:
        super().__init__(record, device)
        self._base = base

    def _gaussians(self, texts: list[str], role: Role) -> tuple[Tensor, Tensor]:
        embeddings, tokens, mask = self._base.tokens(texts, role)
        return normalize(embeddings.float(), dim=1), shrunken(tokens.float(), mask)


def shrunken(tokens: Tensor, mask: Tensor) -> Tensor:
    """The variances (n, d) that token vectors (n, t, d) give texts, where the mask (n, t) says that they are theirs."""
    dimensions, kept = tokens.shape[2], mask[:, :, None].float()
    count = kept.sum(1)
    mean = (tokens * kept).sum(1) / count
    scatter = ((tokens - mean[:, None]).square() * kept).sum(1) / count
    length = mean.square().sum(1, keepdim=True).clamp(min=LEAST_LENGTH)
    return SCALE / dimensions * ((1 - WEIGHT) + WEIGHT * scatter / length * dimensions / TYPICAL)
