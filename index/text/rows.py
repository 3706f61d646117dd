"""Texts of a corpus on their way to the index: a reader's batch of texts becomes one of Gaussians."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from index.errors import InvalidGaussiansError, SourceError
from index.gaussians import Gaussians
from index.payload import plain
from index.records import ModelRecord
from index.rows import Columns, RawBatch, RowDefect, TextColumns
from index.text.protocol import Role, TextEncoder

__all__ = ["MADE", "NoEncoder", "TextSource", "vector_columns"]

MADE = Columns()
"""What the columns of Gaussians that are made of texts are called."""


DEFAULT_COLUMNS = TextColumns()


class NoEncoder:
    """A TextEncoder that reads nothing: every text has the same Gaussian, of one dimension."""

    record = ModelRecord(name="none", encoder="pooled", k=1, fingerprint="0" * 64)

    def encode(self, texts: Sequence[str], role: Role) -> Gaussians:  # noqa: ARG002 (as TextEncoder)
        """As TextEncoder."""
        return Gaussians.unchecked(torch.zeros(len(texts), 1), torch.ones(len(texts), 1))


@dataclass(frozen=True, slots=True)
class TextSource:
    """What makes a corpus of texts one of Gaussians: a model, and how the texts are read."""

    encoder: TextEncoder
    role: Role = Role.DOCUMENT
    columns: TextColumns = DEFAULT_COLUMNS

    @property
    def identity(self) -> list[object]:
        """What decides the Gaussians, besides the texts."""
        return [*astuple(self.columns), self.role.value, self.encoder.record.fingerprint]

    def encode(self, file: Path, raw: RawBatch) -> RawBatch:
        """The same rows with the columns of Gaussians that MADE names, in place of such of another model, and the texts
        as payload.

        Rows without a text or title are rejected, and those of whose text the model makes no Gaussian. Raises
        SourceError where columns are not of text, or are called what the model's are.
        """
        if not raw.table.num_rows:
            # Columns, too, may be missing, where the reader has rejected all.
            empty = pa.table({MADE.id: pa.array([], pa.string()), **self._made([])})
            return replace(raw, table=empty)
        name = self.columns.id_among(raw.table.column_names)
        # Gaussians that another model has made of the same texts are not its payload.
        others = raw.table.drop_columns([name, *filter(partial(_is_vectors, raw.table), MADE.vectors)])
        self._require_names(file, others)
        texts = self._texts(file, others)
        encoded, without = self._encoded([text for text in texts if text])
        given = np.flatnonzero([bool(text) for text in texts])
        reasons = {row: "it must not be null or empty" for row, text in enumerate(texts) if not text}
        reasons.update({int(given[place]): reason for place, reason in without.items()})
        values = others.column(self.columns.text)
        rejected = [
            RowDefect(int(raw.rows[row]), self.columns.text, values[row].as_py(), reason)
            for row, reason in sorted(reasons.items())
        ]
        kept = np.array([row not in reasons for row in range(len(texts))], dtype=bool)
        columns = {MADE.id: raw.table.column(name), **{each: others.column(each) for each in others.column_names}}
        table = pa.table(columns).filter(pa.array(kept))
        for column, numbers in self._made(encoded).items():
            table = table.append_column(column, numbers)
        return RawBatch(table, raw.rows[kept], raw.ordinals[kept], raw.next_row, [*raw.rejected, *rejected])

    @staticmethod
    def _require_names(file: Path, others: pa.Table) -> None:
        """Raises SourceError where a column is called what those of Gaussians are."""
        for made in (MADE.id, *MADE.vectors):
            if made in others.column_names:
                raise SourceError(
                    f"{file}: there is a column {made!r}, which is what the model's Gaussians are called; rename it"
                )

    def _texts(self, file: Path, table: pa.Table) -> list[str]:
        """Titles and texts, as the model reads them; empty where a row has neither."""
        columns = [self.columns.text]
        if self.columns.title in table.column_names:
            columns.insert(0, self.columns.title)
        parts = zip(*(_strings(file, table, name) for name in columns), strict=True)
        return [" ".join(part for part in row if part and part.strip()) for row in parts]

    def _encoded(self, texts: list[str]) -> tuple[list[Gaussians], dict[int, str]]:
        """Gaussians of the texts in their order, and what is wrong where the model makes none of one, by its place.

        Texts among which is one such are halved until it is alone.
        """
        if not texts:
            return [], {}
        try:
            return [self.encoder.encode(texts, self.role)], {}
        except InvalidGaussiansError as error:
            if error.row is None:
                raise
            if len(texts) == 1:
                component = "" if error.component is None else f"; its component {error.component} is none"
                return [], {0: f"the model makes no Gaussian of it{component}"}
        middle = len(texts) // 2
        first, without = self._encoded(texts[:middle])
        last, others = self._encoded(texts[middle:])
        return [*first, *last], {**without, **{middle + place: reason for place, reason in others.items()}}

    def _made(self, encoded: list[Gaussians]) -> dict[str, pa.Array]:
        """The columns of Gaussians."""
        empty = np.empty((0, self.encoder.record.k), np.float32)
        return vector_columns(
            np.concatenate([empty, *(each.means.numpy() for each in encoded)]),
            np.concatenate([empty, *(each.variances.numpy() for each in encoded)]),
        )


def vector_columns(means: npt.NDArray[np.float32], variances: npt.NDArray[np.float32]) -> dict[str, pa.Array]:
    """Means and variances, (n, k) each, as the columns that MADE names."""
    return {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        for name, values in zip(MADE.vectors, (means, variances), strict=True)
    }


def _is_vectors(table: pa.Table, name: str) -> bool:
    kind = table.schema.field(name).type if name in table.column_names else pa.null()
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _strings(file: Path, table: pa.Table, name: str) -> list[str | None]:
    """A column of texts; raises SourceError where it is of something else."""
    column = plain(table.column(name))
    if not any(is_kind(column.type) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)):
        raise SourceError(f"{file}: column {name!r} is {column.type}; it must be of text")
    strings: list[str | None] = column.to_pylist()
    return strings
