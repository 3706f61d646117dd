"""Files of texts made into a Parquet file of Gaussians.

What has been encoded is kept beside the output, in parts of some thousand rows, each of which says where the texts go
on after it: the same command goes on where a killed one stopped. In the end they become the output, in one step.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from index.build_options import EncodeOptions
from index.build_reading import text_source
from index.durable import checksum, sync, write_atomically, write_where_told
from index.errors import BuildError, SourceError
from index.formats.columnar import MODEL_KEY, ROLE_KEY
from index.payload import conformed, unified
from index.progress import Progress, SilentProgress
from index.records import ModelRecord, NonNegativeInt, Strict
from index.rejected_rows import no_documents
from index.sources import RejectedRows, SourceBatch
from index.text.checking import check_texts
from index.text.corpora import corpus_to_encode
from index.text.protocol import Role, TextEncoder
from index.text.rows import MADE, TextSource, vector_columns
from index.text.working import REJECTED, clear, holding, parts_in

__all__ = ["PART_ROWS", "EncodeSummary", "encode_texts"]

PART_ROWS: Final = 2048
"""Texts that a killed run loses at most; also the rows of a row group."""

NEXT_KEY: Final = b"gaussearch.next"


@dataclass(frozen=True, slots=True)
class EncodeSummary:
    """What was made: rows of the output, how many of them an earlier run had encoded, rows left out and the file that
    lists them, and by what."""

    output: Path
    rows: int
    resumed: int
    rejected: int
    rejected_to: Path
    model: ModelRecord


class _Next(Strict):
    """Where the texts go on after a part, how many rows have been left out before, and the bytes that list these."""

    file: NonNegativeInt
    ordinal: NonNegativeInt
    rejected: NonNegativeInt
    listed: NonNegativeInt


def encode_texts(
    source: str | Path,
    output: str | Path,
    options: EncodeOptions,
    progress: Progress | None = None,
    encoder: TextEncoder | None = None,
) -> EncodeSummary:
    """Encodes the texts of a file, folder, glob or `ir_datasets:NAME` into a Parquet file, which is replaced if there
    is one: `id`, `mean`, `variance` (float32) and the texts' own columns, with model and role in the schema's metadata.

    Interrupted, the same call goes on. Raises SourceError, DuplicateIdError where an id is there twice, both before
    anything is encoded; ModelError, DeviceUnavailableError, BuildError where the output cannot be one, it or the list
    of rejected rows would be written over a source, or another process is making it, and OSError where the disk fails.
    """
    output, progress = Path(output), progress or SilentProgress()
    if output.is_symlink():
        # Whoever names a link means the file that it leads to.
        output = output.resolve()
    if output.suffix != ".parquet" or output.is_dir() or not output.parent.is_dir():
        raise BuildError(f"{output}: the output is a file of a folder that exists, and its name ends in .parquet")
    if Path(source).resolve() == output.resolve():
        raise BuildError(f"{output} is the source; name another file for the output")
    with holding(output) as parts:
        texts = text_source(options, encoder, options.role)
        if texts is None:
            raise BuildError("a model is needed to encode texts")
        encoding = _Encoding(str(source), output, parts, texts, options, progress)
        summary = encoding.run()
        # Under the lock: from then on these may be another's.
        clear(parts)
    return summary


class _Encoding:
    """One run: what is left of a corpus becomes parts, and these the output."""

    def __init__(
        self, source: str, output: Path, parts: Path, texts: TextSource, options: EncodeOptions, progress: Progress
    ) -> None:
        self.output, self.parts, self.progress, self.options = output, parts, progress, options
        self.model, self.skips = texts.encoder.record, options.on_error == "skip"
        self.rejected = RejectedRows(parts / REJECTED)
        self.listed_to = options.rejected_to or output.with_name(f"{output.name}.rejected.jsonl")
        rejected = self.rejected if self.skips else None
        self.corpus = corpus_to_encode(source, output, self.listed_to, parts, texts, rejected, options)
        self.stamps = self.corpus.stamps()
        decisive = f"{self.corpus.digest()} {options.on_error} {options.model_precision}"
        self.plan = checksum(decisive.encode())[:12]

    def run(self) -> EncodeSummary:
        check_texts(self.corpus, self.progress, skips=self.skips)
        done, next_row = self._done()
        resumed = sum(pq.read_metadata(part).num_rows for part in done)
        self.progress.phase("encoding", None)
        self.progress.advance(resumed)
        made = self._encode(len(done), next_row)
        if self.corpus.stamps() != self.stamps:
            raise SourceError("the texts were changed while they were read; encode them again when they no longer are")
        done += made
        rejected = next_row.rejected + self.rejected.count
        self._list_rejected(rejected)
        if not done:
            raise no_documents(self.corpus.files, self.rejected if self.skips else None, self.listed_to)
        rows = _join(done, self.output, self.model, self.options.role)
        return EncodeSummary(self.output, rows, resumed, rejected, self.listed_to, self.model)

    def _list_rejected(self, count: int) -> None:
        """Puts the list of rows that were left out where the user finds it; one that an earlier run left goes."""
        if count:
            write_where_told(self.listed_to, self.rejected.path.read_bytes())
        elif self.options.rejected_to is None and self.listed_to.is_file():
            self.listed_to.unlink()

    def _part(self, number: int) -> Path:
        return self.parts / f"{self.plan}-{number:05d}.parquet"

    def _done(self) -> tuple[list[Path], _Next]:
        """The parts that earlier runs of this very encoding have finished, and where the texts go on. Those of others
        are removed."""
        done: list[Path] = []
        found = _Next(file=0, ordinal=0, rejected=0, listed=0)
        listed = self.rejected.path.stat().st_size if self.rejected.path.exists() else 0
        while not self.options.restart and (part := self._part(len(done))).exists():
            try:
                after = _Next.model_validate_json(pq.read_schema(part).metadata[NEXT_KEY])
            except (pa.ArrowException, OSError, KeyError, TypeError, ValidationError):
                # Not ours, or cut by a power cut: it is encoded again.
                break
            if after.listed > listed:
                # Nothing says which rows were left out before it.
                break
            found = after
            done.append(part)
        for other in parts_in(self.parts):
            if other not in done:
                other.unlink()
        if self.rejected.path.exists():
            with self.rejected.path.open("r+b") as file:
                file.truncate(found.listed)
        return done, found

    def _encode(self, first: int, start: _Next) -> list[Path]:
        """Writes what is left of the corpus into parts."""
        made: list[Path] = []
        waiting: list[SourceBatch] = []
        with self.rejected if self.skips else nullcontext():
            for batch in self.corpus.batches(start=(start.file, start.ordinal), cut_every=PART_ROWS):
                waiting.append(batch)
                self.progress.advance(len(batch))
                if sum(map(len, waiting)) == PART_ROWS:
                    after = self._next(start, batch.file_index, batch.next_row)
                    made.append(self._write(first + len(made), waiting, after))
                    waiting = []
            if waiting:
                end = self._next(start, len(self.corpus.files), 0)
                made.append(self._write(first + len(made), waiting, end))
        return made

    def _next(self, start: _Next, file: int, ordinal: int) -> _Next:
        listed = self.rejected.entry.bytes if self.skips else 0
        return _Next(file=file, ordinal=ordinal, rejected=start.rejected + self.rejected.count, listed=listed)

    def _write(self, number: int, batches: Sequence[SourceBatch], after: _Next) -> Path:
        tables = [_table(batch) for batch in batches]
        try:
            table = pa.concat_tables(tables, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise _clash(batches[0].file, batches[-1].file, error) from error
        path = self._part(number)
        sink = pa.BufferOutputStream()
        if self.skips:
            # First, for the part says how long it is.
            sync(self.rejected.path)
        pq.write_table(table.replace_schema_metadata({NEXT_KEY: after.model_dump_json()}), sink, compression="zstd")
        write_atomically(path, sink.getvalue())
        return path


def _table(batch: SourceBatch) -> pa.Table:
    columns = vector_columns(batch.gaussians.means.numpy(), batch.gaussians.variances.numpy())
    others = {} if batch.payload is None else {name: batch.payload[name] for name in batch.payload.column_names}
    return pa.table({MADE.id: batch.ids, **columns, **others})


def _join(parts: Sequence[Path], output: Path, model: ModelRecord, role: Role) -> int:
    """Makes the parts one file, in place of what is there; how many rows it has."""
    schemas = [pq.read_schema(part).empty_table() for part in parts]
    try:
        schema = unified(schemas)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise _clash(output, output, error) from error
    schema, rows = schema.with_metadata({MODEL_KEY: model.model_dump_json(), ROLE_KEY: role.value}), 0
    beside = output.with_name(f".{output.name}.tmp")
    beside.unlink(missing_ok=True)
    try:
        with pq.ParquetWriter(beside, schema, compression="zstd", write_page_checksum=True) as writer:
            for part in parts:
                table = pq.read_table(part)
                writer.write_table(conformed(table, schema, table.num_rows))
                rows += table.num_rows
        sync(beside)
        beside.replace(output)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(output.parent.absolute())
    return rows


def _clash(first: Path, last: Path, error: pa.ArrowException) -> SourceError:
    return SourceError(
        f"the columns beside the texts, between {first} and {last}, have types that do not go together: {error}. Give "
        "the column one type, or leave it out"
    )
