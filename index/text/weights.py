"""Weights as the files of a model have them: every one, and in memory that no file lies beneath.

The libraries that load models make up weights that a file lacks, map the files into memory, and raise whatever they
stumble over.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from torch import nn

from index.errors import ModelError
from index.text.panics import Panics

__all__ = ["broken", "detach_from_files", "every_weight"]

_PATCHING = threading.Lock()


@contextlib.contextmanager
def broken(what: str) -> Iterator[None]:
    """Whatever is raised inside becomes a ModelError that starts with `what`."""
    try:
        with Panics(what):
            yield
    except (ModelError, MemoryError):
        raise
    # Of files that are damaged, the readers of weights, tokenizers and settings raise anything, a bare Exception too.
    except Exception as error:
        raise ModelError(f"{what}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def every_weight(what: str) -> Iterator[list[str]]:
    """Has transformers load whole models only: raises ModelError where files lack weights or have some of another
    shape, in whose place there would be random numbers. Of poolers it gives the names of these: many models have none
    that was trained, and do without.

    What loads every model is replaced inside, since sentence-transformers, which calls it, does not tell.
    """
    from transformers import PreTrainedModel

    patched: Any = PreTrainedModel
    original: Any = PreTrainedModel.__dict__["from_pretrained"]
    poolers: list[str] = []

    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        told = kwargs.pop("output_loading_info", False)
        model, info = original.__func__(cls, *args, output_loading_info=True, **kwargs)
        lacking = sorted({*map(str, info["missing_keys"]), *(str(key[0]) for key in info["mismatched_keys"])})
        poolers.extend(name for name in lacking if _of_pooler(name))
        lacking = [name for name in lacking if not _of_pooler(name)]
        if lacking:
            raise ModelError(
                f"{what}: its files have no weights for {lacking[0]!r}, of the shape that it must have"
                f"{f', nor for {len(lacking) - 1} others' if len(lacking) > 1 else ''}"
            )
        return (model, info) if told else model

    with _PATCHING:
        patched.from_pretrained = classmethod(from_pretrained)
        try:
            yield poolers
        finally:
            patched.from_pretrained = original


def detach_from_files(model: nn.Module) -> None:
    """Copies what is mapped from files: where one is overwritten, the model would change; where it is cut, the process
    would be killed by SIGBUS."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def _of_pooler(name: str) -> bool:
    return "pooler" in name.split(".")
