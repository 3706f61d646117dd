"""An encoder of texts without a model: a text's Gaussian is that of its words' checksums, the same everywhere."""

import hashlib
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from index import Gaussians
from index.errors import InvalidGaussiansError
from index.records import ModelRecord
from index.text import Role

__all__ = ["WordEncoder"]


class WordEncoder:
    """Says how many texts came together (`together`), waits for `gate`, and fails after `left` texts or for POISON."""

    POISON = "poison"

    def __init__(self, name: str = "words", k: int = 5) -> None:
        fingerprint = hashlib.sha256(name.encode()).hexdigest()
        self.record = ModelRecord(name=name, encoder="head", k=k, fingerprint=fingerprint)
        self.together: list[int] = []
        self.read: list[tuple[str, Role]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.left: int | None = None

    def encode(self, texts: Sequence[str], role: Role) -> Gaussians:
        """As TextEncoder."""
        self.together.append(len(texts))
        assert self.gate.wait(60)
        for row, text in enumerate(texts):
            if text == self.POISON:
                raise InvalidGaussiansError(f"row {row}: no Gaussian", row=row)
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
            self.read.append((text, role))
        made = np.array([self.numbers(text, role) for text in texts], dtype=np.float32).reshape(-1, 2, self.record.k)
        return Gaussians.from_arrays(made[:, 0].copy(), made[:, 1].copy())

    def numbers(self, text: str, role: Role) -> npt.NDArray[np.float64]:
        """Mean and variance (2, k) of a text; that of a query is a little less certain."""
        k = self.record.k
        digest = hashlib.sha256(f"{self.record.name} {text}".encode()).digest()
        values = np.frombuffer(digest, np.uint8)[: 2 * k].astype(float).reshape(2, k) / 256
        return np.stack([values[0], 0.5 + values[1] + (0.25 if role is Role.QUERY else 0)])
