"""The second half of a build of kind hnsw: segments are coded, a graph links their documents, and a walk's breadth and
candidates are chosen.

A build that is resumed finds the codebook, the segments that it coded and the graph, if that was finished.
"""

from pathlib import Path

from index.build_fit import CodedIndex, CodesForm, Fitting, measured_recall
from index.build_ladder import Ladder, steps
from index.codes_record import CodesRecord, GraphRecord
from index.durable import measure
from index.gaussians import Gaussians
from index.geometry import FisherGeometry
from index.graph import Graph, GraphBuilder
from index.graph_scanning import GraphScanner
from index.progress import Progress
from index.records import FileEntry
from index.scalar_codebook import ScalarCodebook
from index.staged_documents import StagedDocuments
from index.standardisation import Standardisation
from index.untrusted import IndexFile

__all__ = ["build_graph", "link_documents"]

GEOMETRY_DIMENSIONS = 128
"""Principal components by whose distance links are made. On WordNet Gaussians (k = 128, so of 256) they hold 0.94 of
the variance, and their graph is as good as that of all of them, and built in two thirds of the time."""
LINKED_TOGETHER = 1 << 16
"""Documents handed to FAISS at a time."""
NARROWEST, BROADEST, STEP = 16, 8192, 1.1


def build_graph(fitting: Fitting) -> CodedIndex:
    """Codes and links the staged documents as the plan says.

    Raises NotReachedError where no walk reaches the plan's recall, unless the plan fixes its candidates.
    """
    plan, projection = fitting.plan, fitting.projection
    target, at = fitting.target
    dimensions = plan.code_bytes or fitting.calibration.model(fitting.sample).dimensions(
        projection.energies.numpy(), target, at
    )
    name, coder, entry = fitting.kept_codebook(
        dimensions,
        ScalarCodebook.from_bytes,
        lambda: ScalarCodebook.fit(projection, dimensions, fitting.vectors, eight_bits=plan.code_bytes is not None),
    )
    segments = fitting.encode(CodesForm(coder, entry.blake3))
    path, file = _linked(fitting)
    fitting.progress.phase("measuring recall", None)
    codes = [coder.read(fitting.file(segment, "vectors.faiss"), segment.documents) for segment in segments]
    scanner = GraphScanner(
        Graph(IndexFile(path, file, folders=1), codes, coder.ranges), coder, fitting.standardisation, 1.0, None
    )
    least = max(NARROWEST, at + fitting.held_out.are_documents)
    most = max(least, min(BROADEST, len(fitting.store)))
    queries = fitting.held_out.gaussians
    ladder = Ladder(
        fitting, "walks of breadth", steps(least, most, STEP), lambda breadth: scanner.walk(queries, breadth, breadth)
    )
    # It takes about as long to go on from a document as to score one.
    breadth, candidates = ladder.broad(lambda breadth, candidates: breadth + candidates)
    record = CodesRecord(
        codebook=name,
        file=entry,
        code_bytes=coder.code_bytes,
        dimensions=coder.dimensions,
        candidates=candidates,
        breadth=breadth / candidates[0][1],
        graph=GraphRecord(
            name=path.name,
            file=file,
            segments=len(segments),
            links=plan.hnsw_m or 1,
            construction=plan.hnsw_ef_construction or 1,
        ),
    )
    ranks = ladder.ranks(breadth)[1::2]
    return CodedIndex(segments, record, measured_recall(fitting, ranks, candidates[0][1]))


def _linked(fitting: Fitting) -> tuple[Path, FileEntry]:
    """Where the graph lies, and its entry; it is built unless an earlier run has."""
    plan, store = fitting.plan, fitting.store
    folder = fitting.staging.directory.structures
    folder.mkdir(exist_ok=True)
    path = folder / f"{fitting.staging.segment_id(0)}.faiss"
    if GraphBuilder.wrote(path, len(store)):
        return path, measure(path)
    links, construction = plan.hnsw_m or 1, plan.hnsw_ef_construction or 1
    return path, link_documents(
        store, fitting.documents, fitting.standardisation, links, construction, path, fitting.progress
    )


def link_documents(
    store: StagedDocuments,
    sample: Gaussians,
    standardisation: Standardisation,
    links: int,
    construction: int,
    path: Path,
    progress: Progress,
) -> FileEntry:
    """Writes the graph over all documents of a store, of which a sample tells their geometry, and returns the file's
    entry."""
    progress.phase("linking documents", len(store))
    geometry = FisherGeometry.fit(sample, standardisation, GEOMETRY_DIMENSIONS)
    builder = GraphBuilder(geometry.points(sample), links, construction)
    for block in store.batches(LINKED_TOGETHER):
        builder.add(geometry.points(block))
        progress.advance(len(block))
    builder.write(path)
    return measure(path)
