"""What models make of texts, kept in a folder so that each text is encoded once.

A file of the folder is named after all that decides it: the model, what it computes in and where, the role, and the
texts in their order. Heads over one base share its features.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from index import Gaussians
from index.cores import torch_on_all_cores
from index.durable import checksum
from index.text import Role, TextPrecision, load_encoder
from index.text.batched import LEAST_VARIANCE
from index.text.config import HeadConfig, read_config
from index.text.head import HEAD_FILE, Heads
from index.text.precision import DTYPES, choose_precision
from index.text.references import find_model, fingerprint
from index.text.sentences import SentenceModel
from index.vectors import resolve_device

CACHE = Path("text-features")
BATCH = 32

Encode = Callable[[list[str]], Tensor]


class Features:
    """What has been made of texts so far; and more is made where it is asked for."""

    def __init__(self, cache: Path, console: Console, precision: TextPrecision = TextPrecision.FLOAT32) -> None:
        self._cache, self._console = cache, console
        self._device = resolve_device("auto")
        self.precision = choose_precision(precision, self._device)
        """What models compute in."""
        self._models: dict[Path, SentenceModel] = {}

    def embeddings(self, base: Path, texts: Sequence[str], role: Role) -> Tensor:
        """Sentence embeddings (n, d), float32, by the model of a folder."""

        def encode(batch: list[str]) -> Tensor:
            if base not in self._models:
                self._models[base] = SentenceModel(base, self._device, DTYPES[self.precision])
            # A search may have left fewer threads.
            with torch_on_all_cores(), torch.inference_mode():
                return self._models[base].embeddings(batch, role).float().cpu()

        return self._kept([fingerprint(base, None), role], texts, encode)

    def gaussians(self, model: str, texts: Sequence[str], role: Role) -> Gaussians:
        """The Gaussians of texts by a model: a folder, package:NAME or hub:NAME."""
        folder = find_model(model, download=model.startswith("hub:"))
        config = read_config(folder)
        if isinstance(config, HeadConfig):
            heads = Heads.load(folder / HEAD_FILE)
            embedded = self.embeddings(find_model(config.base, within=folder), texts, role)
            head = heads.query if role is Role.QUERY else heads.document
            means, variances = head.gaussians(embedded, config.beta)
            return Gaussians(means, variances.clamp(min=LEAST_VARIANCE))
        encoder = load_encoder(model, precision=self.precision)

        def encode(batch: list[str]) -> Tensor:
            made = encoder.encode(batch, role)
            return torch.cat([made.means, made.variances], dim=1)

        both = self._kept([encoder.record.fingerprint, role], texts, encode)
        return Gaussians(*(part.contiguous() for part in both.chunk(2, dim=1)))

    def _kept(self, decided_by: list[str], texts: Sequence[str], encode: Encode) -> Tensor:
        """Of the folder, or else of `encode`, which is given the longest texts first, in batches of BATCH."""
        named_after = [*decided_by, self.precision, self._device.type, list(texts)]
        path = self._cache / f"{checksum(json.dumps(named_after).encode())}.npy"
        if not path.exists():
            self._cache.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial.npy")
            np.save(partial, self._made(texts, encode).numpy())
            partial.replace(path)
        return torch.from_numpy(np.load(path))

    def _made(self, texts: Sequence[str], encode: Encode) -> Tensor:
        rows = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
        made: Tensor | None = None
        with Progress(*columns, console=self._console, transient=True) as progress:
            for batch in progress.track(
                [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)], description="texts"
            ):
                found = encode([texts[row] for row in batch])
                if made is None:
                    made = torch.empty(len(texts), found.shape[1])
                made[batch] = found
        if made is None:
            raise ValueError("there are no texts")
        return made
