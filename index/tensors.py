"""Arrays out of a safetensors file, each of the type that it must have."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

__all__ = ["Form", "read_tensors"]


class Form(NamedTuple):
    """What an array is: NumPy's letters for the type of its items, and how many dimensions it has."""

    items: str
    dimensions: int


def read_tensors(data: bytes, forms: Mapping[str, Form]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a safetensors file by their names, which must be these, finite and of these forms.

    Raises ValueError for anything else.
    """
    try:
        arrays: dict[str, npt.NDArray[Any]] = safetensors.numpy.load(data)
    # Of types that NumPy does not have it knows no name.
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"it is no safetensors file: {error}") from error
    if arrays.keys() != forms.keys():
        raise ValueError(f"it has {', '.join(sorted(arrays)) or 'nothing'}, not {', '.join(sorted(forms))}")
    for name, form in forms.items():
        array = arrays[name]
        if array.dtype != np.dtype(form.items) or array.ndim != form.dimensions:
            raise ValueError(
                f"{name} is {array.dtype} of {array.ndim} dimensions, not {np.dtype(form.items)} of {form.dimensions}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} has numbers that are not finite")
    return arrays
