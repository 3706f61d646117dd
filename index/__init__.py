"""Indexes of diagonal Gaussians: encoding, building, storing and searching them. Knows nothing of HTTP.

from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, build_index

build_index(["corpus.parquet"], IndexDirectory("my-index"))
searcher = LocalSearcher(IndexDirectory("my-index"))
ranking, = searcher.search(Gaussians.from_arrays([[0.1, -0.3]], [[1.0, 0.5]]), top_k=10)
"""

from index.build_options import BuildOptions
from index.builder import BuildSummary, build_index
from index.documents import Document
from index.encoding import Encoding, Standardisation, encode_documents, encode_queries, negative_kl
from index.errors import GaussearchError
from index.gaussians import Gaussians
from index.interface import Effort, Precision, Ranking, Searcher
from index.manifest import Manifest
from index.progress import Progress
from index.rescoring import Explanation
from index.searcher import LocalSearcher
from index.sources import Columns, Corpus, VarianceAs
from index.storage import IndexDirectory

__all__ = [
    "BuildOptions",
    "BuildSummary",
    "Columns",
    "Corpus",
    "Document",
    "Effort",
    "Encoding",
    "Explanation",
    "GaussearchError",
    "Gaussians",
    "IndexDirectory",
    "LocalSearcher",
    "Manifest",
    "Precision",
    "Progress",
    "Ranking",
    "Searcher",
    "Standardisation",
    "VarianceAs",
    "build_index",
    "encode_documents",
    "encode_queries",
    "negative_kl",
]
