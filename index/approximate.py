"""What each approximate kind of index finds its candidates by, opened from its directory."""

from collections.abc import Sequence
from pathlib import Path

from index.code_scanning import ApproximateScanner, CodeScanner
from index.codebook import Codebook
from index.encoding import Standardisation
from index.errors import CorruptIndexError
from index.factory_codebook import FactoryCodebook
from index.factory_scanning import FactoryScanner
from index.graph import Graph
from index.graph_scanning import GraphScanner
from index.list_scanning import ListScanner
from index.lists import Lists
from index.manifest import CodesRecord
from index.scalar_codebook import ScalarCodebook
from index.segments import Segment
from index.shortlist import Shortlist
from index.storage import IndexDirectory

__all__ = ["open_approximate"]


def open_approximate(
    directory: IndexDirectory,
    codes: CodesRecord,
    segments: Sequence[Segment],
    standardisation: Standardisation,
    threads: int | None,
    verify: bool,
) -> ApproximateScanner:
    """Reads codes, and what they are found by, into memory; raises CorruptIndexError naming what is not as it should
    be."""
    path = directory.structure(codes.structure, verify=verify) if codes.structure is not None else None
    if codes.graph is not None and path is not None:
        scalar = directory.codebook(codes, ScalarCodebook)
        graph = Graph(path, [scalar.read(each.folder, len(each)) for each in segments], scalar.ranges)
        return GraphScanner(graph, scalar, standardisation, codes.breadth, threads)
    if codes.factory is not None:
        projection = directory.codebook(codes, FactoryCodebook)
        indexes = [projection.read(each.folder, len(each)) for each in segments]
        return FactoryScanner(indexes, projection, standardisation, threads)
    codebook = directory.codebook(codes, Codebook)
    read = [codebook.read(segment.folder, len(segment)) for segment in segments]
    shortlist = Shortlist([codebook.map_projected(each.folder, len(each)) for each in segments], codebook.ranges)
    if path is None:
        return CodeScanner(read, shortlist, codebook, standardisation, codes.breadth, threads)
    lists = _lists(path, sum(map(len, read)))
    return ListScanner(read, shortlist, lists, codebook, standardisation, codes.breadth, threads)


def _lists(path: Path, documents: int) -> Lists:
    try:
        lists = Lists.from_bytes(path.read_bytes())
    except ValueError as error:
        raise CorruptIndexError(f"{path}: {error}") from error
    if len(lists.members) != documents:
        raise CorruptIndexError(f"{path} has the lists of {len(lists.members)} documents, not of {documents}")
    return lists
