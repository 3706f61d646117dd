"""Texts looked through before a model begins to read them: it takes hours for what this takes minutes."""

import os
from collections.abc import Iterator

import pyarrow as pa

from index.duplicates import SeenIds
from index.progress import Progress
from index.rejected_rows import RejectedRows
from index.sources import Corpus

__all__ = ["check_texts"]


def check_texts(corpus: Corpus, progress: Progress, *, skips: bool) -> None:
    """Reads all rows of a corpus of texts, and asks the model nothing. 8 bytes are remembered of each id.

    Raises what reading it raises: SourceError for the first bad row, unless `skips` says that such are left out, and
    for columns that cannot be used; and DuplicateIdError where two of the other rows have one id. That a model makes no
    Gaussian of a text is not known here: its id counts.
    """
    progress.phase("checking the texts", None)
    seen = SeenIds()
    for ids in _ids(corpus, skips=skips):
        seen.add(ids)
        progress.advance(len(ids))
    seen.require_unique(corpus, lambda: _ids(corpus, skips=skips))


def _ids(corpus: Corpus, *, skips: bool) -> Iterator[pa.StringArray]:
    """The ids of the rows that a model is given, batch by batch."""
    if not skips:
        yield from (batch.ids for batch in corpus.without_model(None).batches())
        return
    # They are listed when they are read with the model.
    with RejectedRows(os.devnull) as unlisted:
        yield from (batch.ids for batch in corpus.without_model(unlisted).batches())
