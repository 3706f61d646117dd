"""The first half of a build: the corpus is read once, checked, and cut into staged segments.

While a batch is checked and written here, the corpus has the next one read in a thread of its own. So of the Gaussians
a few batches are in memory; of ids and payload, which are written together, those of a segment. (Writing in a third
thread took as long, on two cores: each of the many small operations on a batch waits for Python's lock.)
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from index.build_options import AddOptions, TextOptions
from index.cores import torch_on_one_core
from index.document_writing import DocumentWriter
from index.durable import Syncer
from index.errors import BuildError
from index.progress import Progress
from index.records import FileEntry
from index.rows import text_columns
from index.sources import Columns, Corpus, DocumentSource, RejectedRows
from index.staging import ReadSegment, Staging
from index.storage import IndexDirectory
from index.text.loading import load_encoder
from index.text.protocol import Role, TextEncoder
from index.text.rows import TextSource

__all__ = ["corpus_of", "read_segments", "text_source"]


def corpus_of(
    sources: Sequence[str | Path],
    directory: IndexDirectory,
    options: AddOptions,
    rejected: RejectedRows,
    rejected_to: Path,
    encoder: TextEncoder | None = None,
) -> Corpus:
    """The corpus that these options make of `sources`, for an index; of texts with `encoder`, or with their model.

    Rows that are left out are listed by `rejected`, and in the end stand in `rejected_to`. Raises SourceError,
    also where they are Gaussians of queries, ModelError, and BuildError where that file is one of the sources.
    """
    texts = text_source(options, encoder, Role.DOCUMENT)
    corpus = Corpus(
        sources,
        columns=Columns(options.id_column, options.mean_column, options.variance_column),
        texts=texts,
        variance_as=options.variance_as,
        apart_from=directory.path,
        rejected=rejected if options.on_error == "skip" else None,
    )
    if rejected_to.resolve() in {file.resolve() for file in corpus.files}:
        raise BuildError(f"{rejected_to} is one of the sources; name another file for rejected rows")
    corpus.require_role(Role.DOCUMENT)
    return corpus


def text_source(options: TextOptions, encoder: TextEncoder | None, role: Role) -> TextSource | None:
    """What makes Gaussians of texts as the options say; None where they name no model, and there is no encoder."""
    if encoder is None and options.model is None:
        return None
    made = encoder or load_encoder(str(options.model), device=options.device, precision=options.model_precision)
    return TextSource(made, role, text_columns(options.id_column, options.text_column, options.title_column))


def read_segments(
    corpus: DocumentSource,
    staging: Staging,
    finished: Sequence[ReadSegment],
    rejected: RejectedRows | None,
    progress: Progress,
    syncer: Syncer,
) -> list[ReadSegment]:
    """Reads the rest of a corpus, after the segments that are `finished`, into segments, and returns those.

    `rejected` is where the corpus lists the rows that it leaves out; what an interrupted run listed there after its
    last finished segment is cut off first. Raises SourceError and OSError.
    """
    start, earlier = (finished[-1].next_record, finished[-1].rejected) if finished else ((0, 0), 0)
    if rejected is not None:
        listed = finished[-1].rejected_file if finished else None
        _truncate(rejected.path, listed.bytes if listed else 0)

    def so_far() -> tuple[int, FileEntry | None]:
        """How many rows have been left out, and the file that lists them."""
        return (earlier + rejected.count, rejected.entry) if rejected is not None else (0, None)

    segments: list[ReadSegment] = []
    segment_docs = staging.plan.segment_docs
    writing = DocumentWriter(staging.folder, segment_docs, len(finished), syncer)

    def finish(next_record: tuple[int, int]) -> None:
        ordinal = len(finished) + len(segments)
        segments.append(staging.keep(ordinal, writing.finish(), next_record, so_far()))

    with rejected or nullcontext(), torch_on_one_core(), writing:
        for batch in corpus.batches(start=start, cut_every=segment_docs):
            writing.add(batch)
            progress.advance(len(batch))
            if writing.documents == segment_docs:
                finish((batch.file_index, batch.next_row))
        if writing.documents:
            finish((len(corpus.files), 0))
    return segments


def _truncate(path: Path, length: int) -> None:
    if path.exists() and path.stat().st_size > length:
        with path.open("r+b") as file:
            file.truncate(length)
