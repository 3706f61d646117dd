"""What one would otherwise search these vectors with, each given what suits it: the other side of the curves.

Every peer gets the index's own 3k+1 numbers, padded to a multiple of 16, as some are slow at other widths. Graphs by
inner product find next to nothing in them, so that those get them a second time as an expert would prepare them: minus
their mean, which changes no ranking, and with one more number that gives all of them the same length, so that the
smallest L2 distance is the largest inner product. Settings ascend, and each finds more than the one before.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Found = npt.NDArray[np.int64]
Search = Callable[[Vectors, int], Found]
"""The ten documents that a query (1, width) finds with a setting."""

M, EF_CONSTRUCTION = 24, 120
"""Of all graphs, ours too."""
TOP_K = 10
BEAMS = (16, 32, 64, 128, 256, 512, 1024, 2048)
PROBES = (4, 8, 16, 32, 64, 128, 256, 512)
CANDIDATES = (20, 50, 100, 200, 400, 800, 1600, 3200)
WIDTH_STEP = 16


@dataclass(frozen=True, slots=True)
class Peer:
    """`build` takes the documents' vectors (n, width) and a folder, and returns the search and the bytes that the index
    takes for a document; `prepared` says that they are centred and lengthened. `needs` is the module that it is in."""

    name: str
    settings: Sequence[int]
    build: Callable[[Vectors, Path], tuple[Search, float]]
    prepared: bool = False
    needs: str = "faiss"

    @property
    def is_installed(self) -> bool:
        """Whether its package is there."""
        return importlib.util.find_spec(self.needs) is not None


def padded(vectors: Vectors) -> Vectors:
    """Zeros up to a multiple of WIDTH_STEP."""
    return np.pad(vectors, ((0, 0), (0, -vectors.shape[1] % WIDTH_STEP)))


def prepared(documents: Vectors, queries: Vectors) -> tuple[Vectors, Vectors]:
    """Centred and lengthened documents, and queries that go with them, padded."""
    centred = documents - documents.mean(axis=0)
    squares = np.einsum("ij,ij->i", centred, centred)
    last = np.sqrt(np.maximum(squares.max() - squares, 0))[:, None]
    zeros = np.zeros((len(queries), 1), dtype=np.float32)
    return padded(np.concatenate([centred, last], axis=1)), padded(np.concatenate([queries, zeros], axis=1))


def peers(width: int, documents: int) -> list[Peer]:
    """All of them, for so many vectors of that width."""
    lists = max(1, min(1024, documents // 40))
    digits = [-(-width // numbers) // 2 * 2 for numbers in (2, 3)]
    return [
        Peer("FAISS IndexFlatIP", (1,), _faiss("Flat")),
        *(Peer(f"FAISS PQ{each}x4fs,RFlat", CANDIDATES, _quantised(each)) for each in digits),
        Peer(f"FAISS IVF{lists},Flat", PROBES, _faiss(f"IVF{lists},Flat", "nprobe")),
        Peer("FAISS HNSW", BEAMS, _faiss(f"HNSW{M}", "efSearch")),
        Peer("FAISS HNSW, centred and lengthened", BEAMS, _faiss(f"HNSW{M}", "efSearch", l2=True), prepared=True),
        Peer("hnswlib", BEAMS, _hnswlib("ip"), needs="hnswlib"),
        Peer("hnswlib, centred and lengthened", BEAMS, _hnswlib("l2"), prepared=True, needs="hnswlib"),
        Peer("usearch", BEAMS, _usearch("ip"), needs="usearch"),
        Peer("usearch, centred and lengthened", BEAMS, _usearch("l2sq"), prepared=True, needs="usearch"),
        Peer("ScaNN", PROBES, _scann, needs="scann"),
        Peer("LanceDB IVF_PQ", PROBES, _lancedb, needs="lancedb"),
    ]


def _faiss(factory: str, parameter: str | None = None, *, l2: bool = False) -> Callable[..., tuple[Search, float]]:
    def build(vectors: Vectors, _: Path) -> tuple[Search, float]:
        metric = faiss.METRIC_L2 if l2 else faiss.METRIC_INNER_PRODUCT
        index: Any = faiss.index_factory(vectors.shape[1], factory, metric)
        if parameter == "efSearch":
            index.hnsw.efConstruction = EF_CONSTRUCTION
        _all_threads()
        index.train(vectors)
        index.add(vectors)

        def search(query: Vectors, setting: int) -> Found:
            if parameter == "nprobe":
                index.nprobe = setting
            elif parameter == "efSearch":
                index.hnsw.efSearch = setting
            rows: Found = index.search(query, TOP_K)[1][0]
            return rows

        links = 4.0 * (2 * M + 2) if parameter == "efSearch" else 0.0
        return search, 4.0 * vectors.shape[1] + links

    return build


def _quantised(digits: int) -> Callable[..., tuple[Search, float]]:
    def build(vectors: Vectors, _: Path) -> tuple[Search, float]:
        wide = np.pad(vectors, ((0, 0), (0, -vectors.shape[1] % digits)))
        index: Any = faiss.index_factory(wide.shape[1], f"PQ{digits}x4fs,RFlat", faiss.METRIC_INNER_PRODUCT)
        _all_threads()
        index.train(wide[:: max(1, len(wide) // 65_536)])
        index.add(wide)

        def search(query: Vectors, setting: int) -> Found:
            index.k_factor = setting / TOP_K
            rows: Found = index.search(np.pad(query, ((0, 0), (0, index.d - query.shape[1]))), TOP_K)[1][0]
            return rows

        return search, 4.0 * wide.shape[1] + digits / 2

    return build


def _hnswlib(space: str) -> Callable[..., tuple[Search, float]]:
    def build(vectors: Vectors, _: Path) -> tuple[Search, float]:
        hnswlib: Any = importlib.import_module("hnswlib")
        index = hnswlib.Index(space=space, dim=vectors.shape[1])
        index.init_index(max_elements=len(vectors), M=M, ef_construction=EF_CONSTRUCTION, random_seed=1)
        index.add_items(vectors, num_threads=os.cpu_count())
        index.set_num_threads(1)

        def search(query: Vectors, setting: int) -> Found:
            index.set_ef(setting)
            return np.asarray(index.knn_query(query, TOP_K)[0][0], dtype=np.int64)

        return search, 4.0 * vectors.shape[1] + 4.0 * (2 * M + 3)

    return build


def _usearch(metric: str) -> Callable[..., tuple[Search, float]]:
    def build(vectors: Vectors, _: Path) -> tuple[Search, float]:
        usearch: Any = importlib.import_module("usearch.index")
        index = usearch.Index(
            ndim=vectors.shape[1], metric=metric, connectivity=M, expansion_add=EF_CONSTRUCTION, dtype="f32"
        )
        index.add(np.arange(len(vectors)), vectors)

        def search(query: Vectors, setting: int) -> Found:
            index.expansion_search = setting
            return np.asarray(index.search(query[0], TOP_K, threads=1).keys, dtype=np.int64)

        return search, float(index.memory_usage) / len(vectors)

    return build


def _scann(vectors: Vectors, _: Path) -> tuple[Search, float]:
    scann: Any = importlib.import_module("scann").scann_ops_pybind
    leaves = int(len(vectors) ** 0.5)
    searcher = (
        scann.builder(vectors, TOP_K, "dot_product")
        .tree(num_leaves=leaves, num_leaves_to_search=leaves, training_sample_size=min(250_000, len(vectors)))
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(1000)
        .build()
    )

    def search(query: Vectors, setting: int) -> Found:
        found = searcher.search(query[0], leaves_to_search=min(setting, leaves), pre_reorder_num_neighbors=1000)
        return np.asarray(found[0], dtype=np.int64)

    return search, 4.0 * vectors.shape[1] + vectors.shape[1] / 4


def _lancedb(vectors: Vectors, folder: Path) -> tuple[Search, float]:
    lancedb: Any = importlib.import_module("lancedb")
    arrow: Any = importlib.import_module("pyarrow")
    column = arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.reshape(-1)), vectors.shape[1])
    table = lancedb.connect(str(folder / "lance")).create_table(
        "documents", arrow.table({"row": np.arange(len(vectors)), "vector": column}), mode="overwrite"
    )
    partitions = int(len(vectors) ** 0.5)
    table.create_index(
        metric="dot", num_partitions=partitions, num_sub_vectors=vectors.shape[1] // 4, index_type="IVF_PQ"
    )

    def search(query: Vectors, setting: int) -> Found:
        asked = table.search(query[0]).distance_type("dot").nprobes(min(setting, partitions)).refine_factor(50)
        return np.asarray(asked.select(["row", "_distance"]).limit(TOP_K).to_arrow()["row"], dtype=np.int64)

    return search, 4.0 * vectors.shape[1] + vectors.shape[1] / 4


def _all_threads() -> None:
    faiss.omp_set_num_threads(os.cpu_count() or 1)
