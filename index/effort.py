"""How much an approximate search looks at, where a request says so or leaves it open."""

from index.errors import InvalidOptionError
from index.interface import Effort
from index.manifest import Manifest

__all__ = ["effort_for"]


def effort_for(manifest: Manifest, top_k: int, candidates: int | None, nprobe: int | None) -> Effort | None:
    """What a search of a generation takes that is not exact; None where all are. As index.interface.Searcher says.

    Raises InvalidOptionError for an nprobe below 1, or where documents are in no lists.
    """
    codes = manifest.codes
    lists = codes.list_count if codes is not None else None
    if nprobe is not None and lists is None:
        raise InvalidOptionError(f"nprobe is {nprobe}, but an index of kind {manifest.kind} has no lists")
    if nprobe is not None and nprobe < 1:
        raise InvalidOptionError(f"nprobe is {nprobe}; it must be at least 1")
    if codes is None:
        return None
    documents = manifest.documents
    taken = min(max(top_k, candidates or codes.candidates_for(top_k)), max(1, documents))
    return Effort(taken, codes.nprobe_for(top_k, documents) if nprobe is None or lists is None else min(nprobe, lists))
