"""Unpickling of numpy arrays and plain containers, and of nothing else.

A pickle is a program: an ordinary unpickler calls whatever it names. numpy's own rebuilding functions are no safe
subset either, because a crafted dtype can declare raw bytes to be object pointers. So no name in the file ever resolves
to the real thing. The handful of names that an array's pickle mentions resolve to stand-ins below, which keep what they
are given and make arrays of it with `numpy.frombuffer`, out of booleans, numbers, text and bytes only.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from index.errors import SourceError

__all__ = ["UnpicklingError", "load_arrays"]

UnpicklingError = pickle.UnpicklingError
"""What torch.load raises for what it refuses: pickle itself is imported here and nowhere else."""

_SIMPLE_KINDS: Final = "biufUS"

_MALFORMED: Final = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What the standard unpickler raises, by its documentation and in practice, on bytes that are not a sound pickle."""


def load_arrays(path: Path) -> Any:
    """What the file holds: numpy arrays (read-only), containers, numbers and text, nested as they were pickled.

    Reads the whole file into memory: a pickle has no other way. Any protocol, from numpy 1 or 2.

    Raises SourceError where the file is not a sound pickle, or mentions anything but arrays of booleans, numbers, text
    or bytes. Nothing that the file names is ever imported or called.
    """
    try:
        with path.open("rb") as file:
            return _finished(_ArrayUnpickler(file).load())
    except _MALFORMED as error:
        # A KeyError or a MemoryError may come without a word of its own.
        raise SourceError(
            f"{path}: cannot be read as a pickle of arrays: {str(error) or type(error).__name__}"
        ) from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        stand_in = _STAND_INS.get((module.replace("numpy.core.", "numpy._core."), name))
        if stand_in is None:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}; only numpy arrays and plain containers are accepted"
            )
        # A fresh object each time: a pickle can set attributes of whatever it is handed.
        return stand_in()

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it refers to an object outside the file ({pid!r:.80})")


class _Dtype:
    """What `numpy.dtype(name, align, copy)` and its state say, believed only where they describe a simple dtype."""

    __slots__ = ("_byte_order", "_name")

    def __init__(self, name: object) -> None:
        if not isinstance(name, str):
            raise pickle.UnpicklingError("a dtype in it has no name")
        self._name = name
        self._byte_order = "="

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subdtype, names, fields, itemsize, alignment, flags)
        if not isinstance(state, tuple) or len(state) != 8 or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError(f"the dtype {self._name!r:.80} is not a simple one")
        if state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"the dtype {self._name!r:.80} has no known byte order")
        self._byte_order = state[1]

    def resolve(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(self._name)
        if dtype.kind not in _SIMPLE_KINDS or dtype.itemsize == 0:
            raise pickle.UnpicklingError(f"it holds an array of {dtype}; numbers, text or bytes are accepted")
        return dtype if self._byte_order == "|" else dtype.newbyteorder(self._byte_order)  # type: ignore[arg-type]


class _Array:
    """An array before its state arrives, as `_reconstruct` leaves it."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran_order, data = state
        self.values = _array_from(data, dtype, shape, "F" if fortran_order else "C")


def _array_from(data: object, dtype: object, shape: object, order: object) -> np.ndarray[Any, Any]:
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("an array in it has no dtype")
    resolved = dtype.resolve()
    if not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError(f"an array in it is made of {type(data).__name__}, not of bytes")
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise pickle.UnpicklingError("an array in it has no shape")
    values = np.frombuffer(data, dtype=resolved).reshape(shape, order="F" if order == "F" else "C")
    values.flags.writeable = False
    return values


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(data: object, dtype: object, shape: object, order: object, *_: object) -> _Array:
    array = _Array()
    array.values = _array_from(data, dtype, shape, order)
    return array


def _scalar(dtype: object, data: object) -> object:
    return _array_from(data, dtype, (1,), "C")[0].item()


def _encode(text: object, encoding: object = "latin1", *_: object) -> bytes:
    # How protocols 0 to 2 spell bytes.
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it encodes something other than bytes")
    return text.encode("latin1")


def _dtype(name: object, *_: object) -> _Dtype:
    return _Dtype(name)


def _fresh(function: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    return lambda: lambda *arguments: function(*arguments)


_STAND_INS: Final[dict[tuple[str, str], Callable[[], Any]]] = {
    ("numpy._core.multiarray", "_reconstruct"): _fresh(_reconstruct),
    ("numpy._core.multiarray", "scalar"): _fresh(_scalar),
    ("numpy._core.numeric", "_frombuffer"): _fresh(_from_buffer),
    ("numpy", "dtype"): _fresh(_dtype),
    # Only ever the first argument of `_reconstruct`, which needs no telling.
    ("numpy", "ndarray"): object,
    ("_codecs", "encode"): _fresh(_encode),
}


def _finished(value: Any) -> Any:
    """The value with its stand-ins replaced. Containers that hold themselves end in RecursionError."""
    if isinstance(value, _Array):
        if value.values is None:
            raise pickle.UnpicklingError("an array in it has no contents")
        return value.values
    if isinstance(value, list):
        return [_finished(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_finished(item) for item in value)
    if isinstance(value, dict):
        return {key: _finished(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str | bytes | bytearray):
        return value
    raise pickle.UnpicklingError(f"it holds a {type(value).__name__}; only arrays and plain containers are accepted")
