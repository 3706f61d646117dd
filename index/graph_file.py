"""Which files may be given to FAISS as the links of a graph: those along which no walk leaves the graph.

A walk begins at one document, on the highest level that it has, and follows links to documents of the same level, whose
links of that level lie at a place that is computed and not looked up. So levels, places and links must fit each other.
"""

import numpy as np
import numpy.typing as npt

from index.faiss_fields import Fields

__all__ = ["require_links"]

MOST_LEVELS = 64
"""Half the documents of a level at most are on the next, so that there are no more."""


def require_links(data: npt.NDArray[np.uint8], documents: int) -> None:
    """ValueError unless the bytes are an IndexHNSWSQ of so many documents, without these, and nothing else."""
    fields = Fields(data.data)
    form = fields.name()
    if form != "IHNs":
        raise ValueError(f"its form is {form!r}, not that of links")
    header = fields.header()
    if header.documents != documents:
        raise ValueError(f"it links {header.documents} documents, not {documents}")
    if not header.is_trained or not 1 <= header.dimensions <= 1 << 20:
        raise ValueError(f"it says of itself {header}")
    fields.vector("f8")
    counts, levels = fields.vector("i4"), fields.vector("i4", documents)
    starts, links = fields.vector("u8", documents + 1), fields.vector("i4")
    entry, highest, *_ = fields.read("iiiii")
    if fields.name() != "null":
        raise ValueError("it has documents of its own")
    fields.end()
    _require_places(counts, levels, starts, len(links))
    if links.min(initial=0) < -1 or links.max(initial=-1) >= documents:
        raise ValueError(f"it has links from {links.min()} to {links.max()}, and {documents} documents")
    if not 0 <= entry < documents or not 0 <= highest < levels[entry]:
        raise ValueError(f"walks begin at document {entry} on level {highest}")
    _require_levels(counts, levels, starts, links)


def _require_places(
    counts: npt.NDArray[np.int32], levels: npt.NDArray[np.int32], starts: npt.NDArray[np.uint64], links: int
) -> None:
    """ValueError unless each document has, one after the other, as many links as documents of its levels have."""
    if not 2 <= len(counts) <= MOST_LEVELS or counts[0] != 0 or (np.diff(counts.astype(np.int64)) < 0).any():
        raise ValueError(f"documents have {counts[:MOST_LEVELS].tolist()} links up to each level")
    if levels.min() < 1 or levels.max() >= len(counts):
        raise ValueError(f"documents are on {levels.min()} to {levels.max()} levels, of {len(counts) - 1}")
    places = starts.astype(np.int64)
    if places[0] != 0 or places[-1] != links or not np.array_equal(np.diff(places), counts[levels]):
        raise ValueError("documents' links do not follow each other")


def _require_levels(
    counts: npt.NDArray[np.int32],
    levels: npt.NDArray[np.int32],
    starts: npt.NDArray[np.uint64],
    links: npt.NDArray[np.int32],
) -> None:
    """ValueError unless documents are linked, on each level but the lowest, to documents that are on it, too."""
    for level in range(1, int(levels.max())):
        rows = np.flatnonzero(levels > level)
        places = starts[rows].astype(np.int64)[:, None] + np.arange(counts[level], counts[level + 1])
        linked = links[places]
        if (levels[linked[linked >= 0]] <= level).any():
            raise ValueError(f"a document is linked on level {level} to one that is not there")
