"""What every encoder of texts is: texts in, Gaussians out."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from index.gaussians import Gaussians
from index.records import ModelRecord

__all__ = ["Role", "TextEncoder"]


class Role(StrEnum):
    """What a text is in a search. Models may read the two in ways of their own."""

    QUERY = "query"
    DOCUMENT = "document"


class TextEncoder(Protocol):
    """A model that makes diagonal Gaussians of texts. One thread at a time."""

    @property
    def record(self) -> ModelRecord:
        """Which model it is, and its k."""

    def encode(self, texts: Sequence[str], role: Role) -> Gaussians:
        """n texts as (n, k) Gaussians in float32 on the CPU, in their order.

        A text longer than the model reads is cut. Raises InvalidGaussiansError, with the text's row, where the model
        makes numbers of a text that are no Gaussian.
        """
