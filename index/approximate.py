"""What each approximate kind of index finds its candidates by, opened from its directory.

Segments written since a graph or lists were made are a tail (index.tailed), and so are, while an index is being served,
those that were written since it was opened: until they are many, and it is laid out anew.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from index.code_scanning import ApproximateScanner, CodeScanner
from index.codes_record import CodesRecord
from index.errors import CorruptIndexError
from index.factory_codebook import FactoryCodebook
from index.factory_scanning import FactoryScanner
from index.generation_files import AnyCodebook, read_codebook, structure_file
from index.graph import Graph
from index.graph_scanning import GraphScanner
from index.list_scanning import ListScanner
from index.lists import Lists
from index.memory import require_room
from index.part import Part
from index.scalar_codebook import ScalarCodebook
from index.scanning import SCANNED
from index.segments import Segment
from index.shortlist import Shortlist
from index.standardisation import Standardisation
from index.storage import IndexDirectory
from index.tailed import ScalarScanner, TailedScanner
from index.untrusted import IndexFile

__all__ = ["OpenedCodes", "open_codebook", "tail_starts"]

LONGEST_TAIL = 1 << 15
TAIL_SHARE = 0.25
"""Documents of a tail, and their share of those before it, up to which one of the two keeps what has been opened."""

LISTS_HEADER_BYTES = 1024
"""More than stands before the arrays of a file of lists."""


def open_codebook(directory: IndexDirectory, codes: CodesRecord, k: int) -> AnyCodebook:
    """The codebook of a generation; raises CorruptIndexError where it is not one of the index's k, or of other codes
    than its manifest says."""
    codebook = read_codebook(directory, codes)
    found = codebook.width, codebook.dimensions, getattr(codebook, "code_bytes", codes.code_bytes)
    expected = SCANNED.width(k), codes.dimensions, codes.code_bytes
    if found != expected:
        raise CorruptIndexError(
            f"{directory.codebooks / codes.codebook} is of vectors of {found[0]} numbers, and its codes of {found[1]} "
            f"dimensions and {found[2]} bytes: not {expected}, as the index's manifest says"
        )
    return codebook


def tail_starts(opened: Sequence[Path], segments: Sequence[Segment]) -> int | None:
    """How many segments, opened before, a generation begins with, if the rest of it is but a tail; None if not."""
    start = len(opened)
    if [segment.folder for segment in segments[:start]] != list(opened):
        return None
    before, after = (sum(map(len, part)) for part in (segments[:start], segments[start:]))
    return start if after <= max(LONGEST_TAIL, TAIL_SHARE * before) else None


@dataclass(frozen=True, slots=True, eq=False)
class OpenedCodes:
    """The codes of a generation, in memory, `base` being those of its first segments, which lie in `folders`."""

    codes: CodesRecord
    codebook: AnyCodebook
    standardisation: Standardisation
    threads: int | None
    base: ApproximateScanner
    folders: tuple[Path, ...]
    scanner: ApproximateScanner

    @classmethod
    def open(
        cls,
        directory: IndexDirectory,
        part: Part,
        codes: CodesRecord,
        segments: Sequence[Segment],
        threads: int | None,
        *,
        known: "OpenedCodes | None" = None,
    ) -> "OpenedCodes":
        """Reads codes of a part of an index, and what they are found by, into memory, but for what another generation
        has open already. `codes` is what the part's own manifest says of them.

        Raises CorruptIndexError naming what is not as it should be.
        """
        standardisation = part.whole.standardisation.restore()
        structure = codes.structure
        # All but the pairs of numbers that say how much a search looks at.
        is_of_it = known is not None and known.codes.file == codes.file and known.codes.structure == structure
        start = tail_starts(known.folders, segments) if known is not None and is_of_it else None
        if known is not None and start is not None and known.codes.breadth == codes.breadth:
            codebook, base = known.codebook, known.base
        else:
            codebook = open_codebook(directory, codes, part.whole.k)
            start = structure.segments if structure is not None else len(segments)
            file = structure_file(directory, structure) if structure is not None else None
            _require_room(directory, codes, segments, file)
            base = _scanner(codes, segments[:start], codebook, standardisation, threads, part, file)
        scanner = base
        if start < len(segments):
            tail = _scanner(codes, segments[start:], codebook, standardisation, threads, part, None)
            documents, total = sum(map(len, segments[:start])), sum(map(len, segments))
            scanner = TailedScanner(base, documents, tail, total)
        folders = tuple(segment.folder for segment in segments[:start])
        return cls(codes, codebook, standardisation, threads, base, folders, scanner)


def _scanner(
    codes: CodesRecord,
    segments: Sequence[Segment],
    codebook: AnyCodebook,
    standardisation: Standardisation,
    threads: int | None,
    part: Part,
    structure: IndexFile | None,
) -> ApproximateScanner:
    """Scans some segments: with a structure as that says, of those of the part that it is of; without one all of their
    codes."""
    files = [segment.file("vectors.faiss") for segment in segments]
    if isinstance(codebook, FactoryCodebook):
        indexes = [codebook.read(*each) for each in _sized(files, segments)]
        if codes.factory is None or any(each.lists != codes.factory.lists for each in indexes):
            raise CorruptIndexError(f"{files[0].path} has other lists than the index's manifest says")
        return FactoryScanner(indexes, codebook, standardisation, threads)
    if isinstance(codebook, ScalarCodebook):
        scalars = [codebook.read(*each) for each in _sized(files, segments)]
        if structure is None:
            return ScalarScanner(scalars, codebook, standardisation)
        graph = Graph(structure, scalars, codebook.ranges)
        return GraphScanner(graph, codebook, standardisation, codes.breadth, threads)
    digits = [codebook.read(*each) for each in _sized(files, segments)]
    projected = [codebook.map_projected(each.file("projected.npy"), len(each)) for each in segments]
    shortlist = Shortlist(projected, codebook.ranges)
    if structure is None or codes.lists is None:
        return CodeScanner(digits, shortlist, codebook, standardisation, codes.breadth, threads)
    lists = _lists(structure, part, codes.lists.lists, codebook.width)
    return ListScanner(digits, shortlist, lists, codebook, standardisation, codes.breadth, threads)


def _sized(files: Sequence[IndexFile], segments: Sequence[Segment]) -> Iterator[tuple[IndexFile, int]]:
    return zip(files, map(len, segments), strict=True)


def _require_room(
    directory: IndexDirectory, codes: CodesRecord, segments: Sequence[Segment], structure: IndexFile | None
) -> None:
    """Raises InsufficientMemoryError where what is read into memory is larger than what is left of it."""
    size = codes.file.bytes
    files = [segment.file("vectors.faiss") for segment in segments]
    for file in files if structure is None else [*files, structure]:
        with file.open() as opened:
            size += opened.size
    require_room(directory.path, size)


def _lists(file: IndexFile, part: Part, lists: int, width: int) -> Lists:
    """The lists of the documents of a part; the file has those of the whole index."""
    documents = part.covered_rows
    try:
        read = Lists.from_bytes(file.contents(4 * (documents + lists * width) + LISTS_HEADER_BYTES))
    except ValueError as error:
        raise CorruptIndexError(f"{file.path}: {error}") from error
    if len(read.members) != documents:
        raise CorruptIndexError(f"{file.path} has the lists of {len(read.members)} documents, not of {documents}")
    if read.centroids.shape != (lists, width):
        raise CorruptIndexError(f"{file.path} has lists {read.centroids.shape}, not {(lists, width)}")
    return Lists(read.centroids, part.rows_of(read.members))
