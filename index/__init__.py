"""Indexes of diagonal Gaussians: encoding, building, storing and searching them. Knows nothing of HTTP.

from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, build_index

build_index(["corpus.parquet"], IndexDirectory("my-index"))
searcher = LocalSearcher(IndexDirectory("my-index"))
ranking, = searcher.search(Gaussians.from_arrays([[0.1, -0.3]], [[1.0, 0.5]]), top_k=10)
"""

from index.backup import back_up
from index.build_options import AddOptions, BuildOptions, CompactOptions, WriteOptions
from index.builder import BuildSummary, build_index
from index.changes import ChangeSummary, add_documents, compact_index, delete_documents, roll_back
from index.documents import Document
from index.encoding import Encoding, encode_documents, encode_queries, negative_kl
from index.errors import GaussearchError, GenerationNotFoundError
from index.filters import Filter
from index.gaussians import Gaussians
from index.interface import Effort, Evidence, Precision, Ranking, Searcher
from index.manifest import Manifest
from index.progress import Progress
from index.rescoring import Explanation
from index.restoring import restore
from index.retention import Retention
from index.searcher import LocalSearcher
from index.sources import Columns, Corpus, VarianceAs
from index.standardisation import Standardisation
from index.storage import IndexDirectory

__all__ = [
    "AddOptions",
    "BuildOptions",
    "BuildSummary",
    "ChangeSummary",
    "Columns",
    "CompactOptions",
    "Corpus",
    "Document",
    "Effort",
    "Encoding",
    "Evidence",
    "Explanation",
    "Filter",
    "GaussearchError",
    "Gaussians",
    "GenerationNotFoundError",
    "IndexDirectory",
    "LocalSearcher",
    "Manifest",
    "Precision",
    "Progress",
    "Ranking",
    "Retention",
    "Searcher",
    "Standardisation",
    "VarianceAs",
    "WriteOptions",
    "add_documents",
    "back_up",
    "build_index",
    "compact_index",
    "delete_documents",
    "encode_documents",
    "encode_queries",
    "negative_kl",
    "restore",
    "roll_back",
]
