"""How a build says how far it is."""

from typing import Protocol

__all__ = ["Progress", "SilentProgress"]


class Progress(Protocol):
    """Told how a build gets on; `advance` is called from several threads."""

    def phase(self, name: str, total: int | None) -> None:
        """A phase begins; `total` is its number of documents where that is known."""

    def advance(self, documents: int) -> None:
        """That many more documents are done."""


class SilentProgress:
    """Progress that nobody watches."""

    def phase(self, name: str, total: int | None) -> None:
        """Says nothing."""

    def advance(self, documents: int) -> None:
        """Says nothing."""
