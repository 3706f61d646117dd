"""Documents that come in a request, as what the index takes: ids, Gaussians in float32 and payload columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from index import Gaussians, Manifest
from index.document_writing import DocumentBatch
from index.encoding import encode_documents
from index.row_checks import MAX_ID_BYTES
from service.problems import InvalidRequestError
from service.schemas import DocumentBody

__all__ = ["documents_of", "require_id", "require_ids"]

_SOURCE = Path("documents")


def documents_of(documents: Sequence[DocumentBody], told: Gaussians, manifest: Manifest) -> DocumentBatch:
    """Documents for an index, of which these are the Gaussians.

    Raises InvalidRequestError for payload whose values do not make columns, and InvalidGaussiansError naming the row
    that is no Gaussian of the index, or that float32 does not hold.
    """
    ids = [document.id for document in documents]
    gaussians = told.to(dtype=torch.float32)
    # What no vector holds is refused here, where it is known whose it is.
    encode_documents(gaussians, manifest.encoding, manifest.standardisation.restore())
    return DocumentBatch(_SOURCE, pa.array(ids, pa.string()), gaussians, _payload(documents))


def require_ids(documents: Sequence[DocumentBody]) -> None:
    """Raises InvalidRequestError for an id that comes twice or that cannot be one."""
    ids = [document.id for document in documents]
    for row, name in enumerate(ids):
        require_id(name, f"documents.{row}.id")
    if len(set(ids)) < len(ids):
        twice = next(name for row, name in enumerate(ids) if name in ids[:row])
        raise InvalidRequestError(f"documents: id {twice!r} comes twice; send it once")


def require_id(name: str, field: str) -> None:
    """Raises InvalidRequestError for what no document may be called."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"{field}: it is not Unicode") from error
    if not 1 <= size <= MAX_ID_BYTES:
        raise InvalidRequestError(f"{field}: it has {size} bytes in UTF-8; it must have 1 to {MAX_ID_BYTES}")


def _payload(documents: Sequence[DocumentBody]) -> pa.Table | None:
    """A column for each name that any of them has, null where one has it not; None where there is none."""
    rows: list[dict[str, Any]] = [
        ({} if document.text is None else {"text": document.text}) | (document.payload or {}) for document in documents
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeError) as error:
            raise InvalidRequestError(
                f"documents: payload {name!r} has values that do not make one column: {error}. Give it one type"
            ) from error
    return pa.table(columns) if columns else None
