"""What the scores are worth on the carried sample, and what happens to those who do the obvious thing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from benchmark_data import SAMPLE
from benchmark_measure import Figure

from index import Corpus, Encoding, Gaussians, encode_documents, encode_queries
from index.rescoring import negative_kl

TOP_K = 10
DEVIATION = 0.1
OFFSETS = (0, 10, 30, 100)
EF_SEARCH = (64, 512)

Rows = npt.NDArray[np.int64]


def quality_part() -> Iterator[Figure]:
    """MRR@10 of -KL beside cosine, and the recall of float32 and of HNSW on the vectors as they are."""
    documents, queries = _read("documents.parquet"), _read("queries.parquet")
    relevant = _relevant_rows()
    exact = _exact(documents, queries)
    cosine = _unit(queries.means) @ _unit(documents.means).T
    ranked = {"-KL": exact, "cosine of the means": cosine.topk(TOP_K).indices.numpy()}
    for measure, rows in ranked.items():
        yield Figure.of("quality", "MRR@10, 400 queries", measure, _mrr(rows, relevant), "ratio")
    vectors = encode_documents(documents, Encoding.SIMPLIFIED).numpy()
    asked = encode_queries(queries, Encoding.SIMPLIFIED).numpy()
    for ef in EF_SEARCH:
        graph = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction, graph.hnsw.efSearch = 200, ef
        graph.add(vectors)
        recall = _recall(graph.search(asked, TOP_K)[1], exact)
        yield Figure.of("quality", "recall@10 of HNSW by inner product", f"M 32, ef {ef}", recall, "ratio")
    scale = DEVIATION / float(documents.variances.mean()) ** 0.5
    for offset in OFFSETS:
        moved, moved_queries = _moved(documents, scale, offset), _moved(queries, scale, offset)
        flat = faiss.IndexFlatIP(vectors.shape[1])
        flat.add(encode_documents(moved, Encoding.SIMPLIFIED).numpy())
        found = flat.search(encode_queries(moved_queries, Encoding.SIMPLIFIED).numpy(), TOP_K)[1]
        recall = _recall(found, _exact(moved, moved_queries))
        setting = f"recall@10 of IndexFlatIP, not standardised, deviations near {DEVIATION}"
        yield Figure.of("quality", setting, f"means moved by {offset}", recall, "ratio")


def _read(name: str) -> Gaussians:
    return Gaussians.concatenate([batch.gaussians for batch in Corpus([SAMPLE / name]).batches()])


def _relevant_rows() -> list[int]:
    ids = pq.read_table(SAMPLE / "documents.parquet", columns=["id"])["id"].to_pylist()
    row = {identifier: place for place, identifier in enumerate(ids)}
    relevant = pq.read_table(SAMPLE / "queries.parquet", columns=["relevant"])["relevant"].to_pylist()
    return [row[identifier] for identifier in relevant]


def _moved(gaussians: Gaussians, scale: float, offset: float) -> Gaussians:
    return Gaussians(gaussians.means * scale + offset, gaussians.variances * scale**2)


def _exact(documents: Gaussians, queries: Gaussians) -> Rows:
    """The TOP_K rows of each query by float64 -KL."""
    means, variances = documents.means.numpy(), documents.variances.numpy()
    asked = zip(queries.means.numpy(), queries.variances.numpy(), strict=True)
    scores = np.stack([negative_kl(mean, variance, means, variances) for mean, variance in asked])
    return np.argsort(-scores, axis=1, kind="stable")[:, :TOP_K]


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=1)


def _recall(found: Rows, exact: Rows) -> float:
    return float(np.mean([len(set(a) & set(b)) / TOP_K for a, b in zip(found.tolist(), exact.tolist(), strict=True)]))


def _mrr(ranked: Rows, relevant: Sequence[int]) -> float:
    places = [np.flatnonzero(row == wanted) for row, wanted in zip(ranked, relevant, strict=True)]
    return float(np.mean([1 / (place[0] + 1) if len(place) else 0.0 for place in places]))
