"""That an index and what is put to it are of one model."""

from index.errors import ModelMismatchError
from index.records import ModelRecord

__all__ = ["require_model"]


def require_model(
    of_index: ModelRecord | None,
    other: ModelRecord | None,
    index: str,
    *,
    reads: bool = False,
    otherwise: str = "give Gaussians instead",
) -> None:
    """Raises ModelMismatchError where both are known and are not the same; where the other `reads` texts that are put
    to the index or added to it, also where nobody knows which model the index is of. `otherwise` is what else can be
    done then.

    Gaussians of another model have other dimensions, even where they have as many: whatever is found means nothing.
    """
    if other is None or (of_index is None and not reads):
        return
    if of_index is None:
        raise ModelMismatchError(
            f"{index} does not say which model its Gaussians are of, so words can be neither searched for in it nor "
            "added to it: build it of texts (gaussearch build --model) or of what gaussearch encode has made, or "
            f"{otherwise}"
        )
    if of_index.fingerprint != other.fingerprint:
        raise ModelMismatchError(
            f"{index} holds Gaussians of the model {of_index.name!r} ({of_index.encoder}, {of_index.fingerprint[:12]}),"
            f" and {other.name!r} ({other.encoder}, {other.fingerprint[:12]}) is another: use the index's model, or "
            "build an index with this one (gaussearch build --model)"
        )
