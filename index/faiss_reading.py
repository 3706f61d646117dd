"""Files of FAISS's that only FAISS can read, from memory: what has been hashed and looked at is what is read."""

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

__all__ = ["deserialised"]

# What FAISS's stubs do not know.
_Reader: Any = vars(faiss)["PyCallbackIOReader"]


def deserialised(data: npt.NDArray[np.uint8]) -> Any:
    """FAISS's index of bytes that index.faiss_forms or index.graph_file have gone through.

    It is in memory twice until this returns; by faiss.deserialize_index it would be three times. RuntimeError where
    FAISS finds something that was not looked for.
    """
    view, place = data.data, 0

    def read(size: int) -> bytes:
        nonlocal place
        piece = bytes(view[place : place + size])
        place += len(piece)
        return piece

    reader = _Reader(read)
    return faiss.read_index(reader)
