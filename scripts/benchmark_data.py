"""The corpora of the benchmark: a source, by default the carried sample, or a larger one made from it.

A corpus of another size is a sample of a mixture fitted to the source's documents (benchmark_mixture), and so are the
queries about it, of one fitted to the source's queries. It is made in chunks, from one seed, so its size is not bounded
by memory and every run sees the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from benchmark_mixture import Mixture

from index import Corpus, Gaussians

SAMPLE = Path(__file__).resolve().parent.parent / "sample" / "wordnet"
SEED = 2023
CHUNK_ROWS = 1 << 14

Vectors = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive documents; means and variances are (n, k)."""

    ids: list[str]
    means: Vectors
    variances: Vectors
    texts: list[str]


@dataclass(frozen=True, slots=True)
class Data:
    """The source's documents, and queries about them; queries are (b, k) float32."""

    means: Vectors
    variances: Vectors
    texts: list[str]
    queries: Gaussians

    @classmethod
    def read(cls, corpus: Path | None, queries: Path | None) -> Data:
        """Reads both from files of any format that a build takes; without a corpus, the sample.

        A corpus without queries lends its own first documents as such.
        """
        means, variances, texts = _read(corpus or SAMPLE / "documents.parquet")
        if queries is None and corpus is not None:
            asked = (means[:400], variances[:400])
        else:
            asked = _read(queries or SAMPLE / "queries.parquet")[:2]
        return cls(means, variances, texts, Gaussians.from_arrays(*asked, k=means.shape[1]))

    def __len__(self) -> int:
        return len(self.means)

    @property
    def k(self) -> int:
        return int(self.means.shape[1])

    def chunks(self, documents: int) -> Iterator[Chunk]:
        """A corpus of that size in chunks: the source itself where it has that size."""
        rng = np.random.default_rng(SEED)
        mixture = None if documents == len(self) else Mixture.fit(self.means, self.variances)
        for first in range(0, documents, CHUNK_ROWS):
            count = min(CHUNK_ROWS, documents - first)
            ids = [f"d{row}" for row in range(first, first + count)]
            rows = np.arange(first, first + count) % len(self)
            if mixture is None:
                means, variances = self.means[rows], self.variances[rows]
            else:
                means, variances = mixture.sample(count, rng)
            yield Chunk(ids, means, variances, [self.texts[row] for row in rows.tolist()])

    def queries_about(self, documents: int, count: int) -> Gaussians:
        """Queries about a corpus of that size: the source's own, or `count` that are like them."""
        if documents == len(self):
            return self.queries
        mixture = Mixture.fit(self.queries.means.numpy(), self.queries.variances.numpy())
        return Gaussians.from_arrays(*mixture.sample(count, np.random.default_rng(SEED)))

    def arrays(self, documents: int) -> tuple[list[str], Vectors, Vectors]:
        """The ids, means and variances of such a corpus, in memory."""
        chunks = list(self.chunks(documents))
        ids = [identifier for chunk in chunks for identifier in chunk.ids]
        return ids, np.concatenate([c.means for c in chunks]), np.concatenate([c.variances for c in chunks])

    def write_parquet(
        self, path: Path, documents: int, *, with_text: bool, columns: Mapping[str, Numbers] | None = None
    ) -> Path:
        """Writes such a corpus as Parquet, float32 in fixed-size lists, holding a chunk of it at a time; `columns` are
        further ones, (documents,) each."""
        vector = pa.list_(pa.float32(), self.k)
        schema = pa.schema({"id": pa.string(), "mean": vector, "variance": vector})
        if with_text:
            schema = schema.append(pa.field("text", pa.string()))
        numbers = columns or {}
        for name in numbers:
            schema = schema.append(pa.field(name, pa.int64()))
        written = 0
        with pq.ParquetWriter(path, schema) as writer:
            for chunk in self.chunks(documents):
                arrays = [pa.array(chunk.ids), _lists(chunk.means), _lists(chunk.variances)]
                if with_text:
                    arrays.append(pa.array(chunk.texts))
                rows = slice(written, written + len(chunk.ids))
                arrays += [pa.array(column[rows]) for column in numbers.values()]
                written = rows.stop
                writer.write_table(pa.table(arrays, schema=schema))
        return path

    def write_npz(self, path: Path, documents: int) -> Path:
        """Writes such a corpus as an uncompressed NPZ."""
        ids, means, variances = self.arrays(documents)
        np.savez(path, id=np.array(ids), mean=means, variance=variances)
        return path


def write_gaussians(path: Path, gaussians: Gaussians) -> Path:
    """Writes Gaussians alone as Parquet."""
    means, variances = gaussians.means.numpy(), gaussians.variances.numpy()
    ids = [f"q{row}" for row in range(len(gaussians))]
    pq.write_table(pa.table({"id": ids, "mean": _lists(means), "variance": _lists(variances)}), path)
    return path


def _read(path: Path) -> tuple[Vectors, Vectors, list[str]]:
    means: list[Vectors] = []
    variances: list[Vectors] = []
    texts: list[str] = []
    for batch in Corpus([path]).batches():
        means.append(batch.gaussians.means.numpy())
        variances.append(batch.gaussians.variances.numpy())
        payload = batch.payload
        if payload is not None and "text" in payload.column_names:
            texts += map(str, payload["text"].to_pylist())
        else:
            texts += [""] * len(batch)
    return np.concatenate(means), np.concatenate(variances), texts


def _lists(vectors: Vectors) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).reshape(-1)), vectors.shape[1])
