"""Which options go with which kind of index, and which kind `--kind auto` is, and why: by what each takes for one query
on one core, as measured."""

from index.build_options import BuildOptions
from index.errors import BuildError
from index.factory import check_factory
from index.manifest import IndexKind
from index.projector import STEP
from index.scanning import SCANNED

__all__ = ["check_options", "choose_kind"]

OF_KINDS = {
    "code_bytes": set(IndexKind) - {IndexKind.FLAT},
    "candidates": set(IndexKind) - {IndexKind.FLAT},
    "lists": {IndexKind.IVF_FASTSCAN, IndexKind.AUTO},
    "nprobe": {IndexKind.IVF_FASTSCAN, IndexKind.AUTO},
    "factory": {IndexKind.FAISS},
}
"""Options that say nothing of other kinds than these."""

FLAT_NUMBERS = 1 << 22
"""Numbers of vectors that are scanned in about a millisecond: 16,000 documents at k = 128. Up to there exactness costs
nothing that anyone would notice, and everything else takes a third of that before it looks at a document."""
SCANNED_DOCUMENTS = 1_000_000
"""Documents whose codes are scanned in some four milliseconds. Above that lists save time, if not much is asked for."""
HIGHEST_BY_LISTS = 0.97
"""The highest recall for which lists are looked into. For more it is so many of them that scanning all takes less:
code by code, a scan of lists takes twice as long. Measured on samples of a mixture, where graphs took longer still."""


def choose_kind(documents: int, k: int, target: float) -> tuple[IndexKind, str]:
    """The kind for a corpus of so many documents of k dimensions and a target recall, and the reason in words."""
    numbers = documents * SCANNED.width(k)
    if numbers <= FLAT_NUMBERS:
        return (
            IndexKind.FLAT,
            f"auto: {documents:,} documents of {k} dimensions are scanned exactly in about a millisecond",
        )
    if documents <= SCANNED_DOCUMENTS:
        return (
            IndexKind.FASTSCAN,
            f"auto: the codes of {documents:,} documents are scanned in some milliseconds",
        )
    if target > HIGHEST_BY_LISTS:
        reason = f"auto: for a recall of {target} scanning some lists of {documents:,} documents saves nothing"
        return IndexKind.FASTSCAN, reason
    return IndexKind.IVF_FASTSCAN, f"auto: with {documents:,} documents, scanning some lists saves time"


def check_options(options: BuildOptions) -> None:
    """Raises BuildError for options that do not go together, before anything is read."""
    for name, kinds in OF_KINDS.items():
        if getattr(options, name) is not None and options.kind not in kinds:
            option = "--" + name.replace("_", "-")
            named = " and ".join(sorted(kinds))
            raise BuildError(
                f"{option} is for kind {named}, and this is {options.kind}: leave it out, or choose another kind"
            )
    if options.kind is IndexKind.FAISS:
        if options.factory is None:
            raise BuildError("--kind faiss needs --factory, a string of FAISS's index factory, such as IVF256,SQ8")
        padded = None if options.code_bytes is None else -(-options.code_bytes // STEP) * STEP
        check_factory(options.factory, padded)
