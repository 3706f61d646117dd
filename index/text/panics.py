"""Panics of Rust, in which tokenizers and readers of weights are written, as errors of the model."""

from types import TracebackType
from typing import Final

from index.errors import ModelError

__all__ = ["Panics"]

PANIC: Final = "PanicException"
"""What pyo3 raises for a panic: a class of each extension's own, which none exports, and no Exception."""


class Panics:
    """Turns a panic inside into a ModelError that starts with `what`, and lets all else through."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and kind.__module__ == "pyo3_runtime" and kind.__name__ == PANIC:
            raise ModelError(
                f"{self._what}: the code that reads it has panicked: {error}. A file of the model, most likely its "
                "tokenizer.json, may be damaged, or made for another version of tokenizers than is installed here: get "
                "it anew, or leave the text out"
            ) from error
