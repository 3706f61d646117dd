"""An index built anew from its own documents: standardised, projected and measured for what they have become.

Documents that are written later are standardised and coded as those of the build were. Where they differ from these,
scans find less of the best, as index.drift measures; this is what brings the recall back.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from index.build_fit import GivenQueries, read_queries
from index.build_options import CompactOptions
from index.build_run import BuildRun
from index.compaction import BATCH_ROWS, live_rows, rows_batch
from index.documents import Numbers
from index.durable import checksum
from index.errors import BuildError, SourceError
from index.formats import is_of_texts
from index.generation_files import deleted_rows, open_segments
from index.manifest import Manifest
from index.progress import Progress, SilentProgress
from index.rows import Columns
from index.segments import Segment
from index.sources import Corpus, RejectedRows, SourceBatch, Stamps
from index.staging import BuildPlan
from index.storage import IndexDirectory
from index.text.matching import require_model
from index.vectors import resolve_device

__all__ = ["IndexedDocuments", "rebuild_index"]


class IndexedDocuments:
    """The documents of a generation as the corpus of a build: index.sources.DocumentSource."""

    def __init__(self, directory: IndexDirectory, manifest: Manifest) -> None:
        """Raises CorruptIndexError unless every byte of them is in order: what is damaged must not be built in."""
        directory.verify_contents(manifest)
        self._lease = directory.fetch(manifest)
        self._segments: list[Segment] = open_segments(directory, manifest, verify=False)
        self._deleted: list[Numbers] = [deleted_rows(directory, entry) for entry in manifest.segments]
        self.files: tuple[Path, ...] = tuple(segment.folder for segment in self._segments)

    def stamps(self) -> Stamps:
        """Nothing: what a generation is made of does not change."""
        return []

    def batches(self, *, start: tuple[int, int] = (0, 0), cut_every: int | None = None) -> Iterator[SourceBatch]:
        """As Corpus.batches."""
        wanted = cut_every or BATCH_ROWS
        for place in range(start[0], len(self._segments)):
            rows = live_rows(self._segments[place], self._deleted[place])
            rows = rows[rows >= (start[1] if place == start[0] else 0)]
            while len(rows):
                part, rows = np.split(rows, [min(wanted, BATCH_ROWS)])
                wanted = wanted - len(part) or cut_every or BATCH_ROWS
                batch = rows_batch(self._segments[place], part)
                yield SourceBatch(
                    file=batch.file,
                    file_index=place,
                    rows=part,
                    ordinals=part,
                    next_row=int(part[-1]) + 1,
                    ids=batch.ids,
                    gaussians=batch.gaussians,
                    payload=batch.payload,
                )

    def locate(self, wanted: Collection[str]) -> dict[str, list[str]]:
        """As Corpus.locate; every id is there once."""
        return {identifier: ["the index"] for identifier in wanted}


def rebuild_index(
    directory: IndexDirectory, options: CompactOptions | None = None, progress: Progress | None = None
) -> Manifest:
    """Builds the index anew of its own documents, with the options that it was built with, and publishes it.

    Interrupted, the same command goes on, unless the index has been written to. Raises the errors of build_index,
    BuildError where there are no documents, and ModelMismatchError for queries of another model than the index's.
    """
    options, progress = options or CompactOptions(), progress or SilentProgress()
    device = resolve_device(options.device)
    # Before the lock, which makes the folder.
    directory.current_token()
    with directory.lock(options.wait):
        manifest = directory.manifest()
        if not manifest.documents:
            raise BuildError(f"{directory} holds no documents to build an index of")
        queries = None
        if options.queries is None and manifest.had_queries:
            progress.phase(
                "queries were given before and are not now: documents take their place (--queries FILE)", None
            )
        if options.queries is not None:
            queries = _queries(options.queries, directory, manifest)
        corpus = IndexedDocuments(directory, manifest)
        settings = {name: getattr(manifest.settings, name) for name in type(manifest.settings).model_fields}
        plan = BuildPlan(
            **settings,
            corpus=checksum(directory.current_token().encode()),
            on_error="stop",
            queries=queries.digest if queries is not None else None,
        )
        rejected = directory.staging / "rejected.jsonl"
        run = BuildRun(
            directory,
            plan,
            corpus,
            corpus.stamps(),
            queries,
            RejectedRows(rejected),
            rejected,
            min_recall=options.min_recall,
            retention=options.retention,
            device=device,
            progress=progress,
            before=manifest,
        )
        return run.run(restart=options.restart)


def _queries(file: Path, directory: IndexDirectory, manifest: Manifest) -> GivenQueries:
    try:
        queries = Corpus([file])
        require_model(manifest.model, queries.model(), str(directory))
        return read_queries(file, queries)
    except SourceError as error:
        if not is_of_texts(file, Columns()):
            raise
        raise SourceError(
            f"{file}: an index is built anew with Gaussians of queries, and these are texts: make Gaussians of them "
            "with gaussearch encode --role query"
        ) from error
