"""What makes a row of a corpus unusable, found for a whole batch at a time."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.dlpack import from_dlpack

from index.errors import SourceError
from index.gaussians import MAX_DIMENSIONS, Gaussians, find_defects
from index.payload import plain, unknown_zone
from index.rows import Columns, RawBatch, RowDefect, SourceBatch, VarianceAs

__all__ = ["RowChecker", "id_column"]

MAX_ID_BYTES: Final = 512
"""The longest id, in UTF-8: a key to look up, not a place for the document."""


ANOTHER_INDEX: Final = "The documents of an index all have its k: build an index of its own of these (gaussearch build)"


class RowChecker:
    """Turns raw batches into Gaussians, and says which rows are none.

    `k` is fixed by the first good row where it is not given; `of_index` says that it is an index's.
    """

    def __init__(
        self, columns: Columns, variance_as: VarianceAs, k: int | None = None, *, of_index: bool = False
    ) -> None:
        self.columns = columns
        self.variance_as = variance_as
        self.k = k
        self._k_is = f"the index has k = {k}" if of_index else None

    def check(self, file: Path, file_index: int, raw: RawBatch) -> tuple[SourceBatch | None, list[RowDefect]]:
        """The good rows of a raw batch, or None where it has none, and the defects of the others.

        Defects are in row order, one for each bad row: the first of id, mean and variance that is wrong with it. Raises
        SourceError for columns of unusable types.
        """
        ids = id_column(file, raw.table, self.columns.id)
        mean = _Vectors(file, raw.table, self.columns.mean)
        variance = _Vectors(file, raw.table, self.columns.variance)
        found = _Found(raw.rows)
        found.add(self.columns.id, _id_defects(ids))
        found.add(self.columns.mean, mean.defects())
        found.add(self.columns.variance, variance.defects())
        self._check_widths(found, mean, variance)
        rows = np.flatnonzero(found.good)
        means, variances = self._values(found, rows, mean, variance)
        defects = sorted([*raw.rejected, *found.defects], key=lambda defect: defect.row)
        if not found.good.any():
            return None, defects
        kept, mask = found.good[rows], pa.array(found.good)
        if not kept.all():
            means, variances = means[torch.from_numpy(kept)], variances[torch.from_numpy(kept)]
        everything = bool(found.good.all())
        payload = _payload(file, raw.table, self.columns)
        batch = SourceBatch(
            file=file,
            file_index=file_index,
            rows=raw.rows[found.good],
            ordinals=raw.ordinals[found.good],
            next_row=raw.next_row,
            ids=(ids if everything else ids.filter(mask)).cast(pa.string()),
            gaussians=Gaussians.unchecked(means, variances),
            payload=payload if payload is None or everything else payload.filter(mask),
        )
        return batch, defects

    def _check_widths(self, found: "_Found", mean: "_Vectors", variance: "_Vectors") -> None:
        differ = np.flatnonzero(found.good & (mean.widths != variance.widths))
        found.add(
            self.columns.variance,
            (
                (row, variance.row(row), f"it has {variance.widths[row]} components and the mean {mean.widths[row]}")
                for row in differ.tolist()
            ),
        )
        if self.k is None:
            # One row at a time, until one is good: nothing else can say how wide the others should be.
            for row in np.flatnonzero(found.good):
                self._values(found, np.array([row]), mean, variance)
                if found.good[row]:
                    self.k = int(mean.widths[row])
                    break
        wrong = np.flatnonzero(found.good & (mean.widths != self.k))
        other = self._k_is or f"the corpus has {self.k}"
        found.add(
            self.columns.mean,
            ((row, mean.row(row), f"it has {mean.widths[row]} components; {other}") for row in wrong.tolist()),
            remedy=ANOTHER_INDEX if self._k_is else None,
        )

    def _values(
        self, found: "_Found", rows: np.ndarray[Any, Any], mean: "_Vectors", variance: "_Vectors"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 (n, k) means and variances of these rows, equally wide; rows with bad values are marked as found."""
        means, variances = mean.tensor(rows), variance.tensor(rows, self.variance_as)
        defects = find_defects(means, variances)
        if defects:
            raw_means, raw_spreads = mean.matrix(rows), variance.matrix(rows)
        for defect in defects:
            is_mean = defect.field == "mean"
            value = (raw_means if is_mean else raw_spreads)[defect.row, defect.component]
            reason = defect.reason if is_mean else self._variance_reason(value, defect.reason)
            if is_mean and np.isfinite(value):
                reason = "float32 cannot hold it"
            found.add(
                self.columns.mean if is_mean else self.columns.variance,
                [(int(rows[defect.row]), _as_written(value), f"component {defect.component}: {reason}")],
            )
        return means, variances

    def _variance_reason(self, value: Any, reason: str) -> str:
        if not np.isfinite(value):
            return "it must be finite"
        if self.variance_as is VarianceAs.LOGVAR:
            return "it is a log variance, and float32 cannot hold its exponential"
        if value <= 0:
            return reason
        if self.variance_as is VarianceAs.STD:
            return "it is a standard deviation, and float32 cannot hold its square"
        return "float32 cannot hold it"


def id_column(file: Path, table: pa.Table, name: str) -> pa.Array:
    """The ids of a raw table as an Arrow string array (string or large_string), nulls kept.

    Raises SourceError where the column is neither of strings nor of integers.
    """
    ids = _one_array(table.column(name))
    if pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    if pa.types.is_null(ids.type) or pa.types.is_integer(ids.type):
        return ids.cast(pa.string())
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        return ids
    raise SourceError(f"{file}: column {name!r} is {ids.type}; ids are strings or integers")


class _Found:
    """The defects of a batch so far, at most one a row, and which rows are still good."""

    def __init__(self, rows: np.ndarray[Any, Any]) -> None:
        self.good = np.ones(len(rows), dtype=bool)
        self.defects: list[RowDefect] = []
        self._rows = rows

    def add(self, column: str, defects: Iterable[tuple[int, object, str]], remedy: str | None = None) -> None:
        for row, value, reason in defects:
            if self.good[row]:
                self.good[row] = False
                self.defects.append(RowDefect(int(self._rows[row]), column, value, reason, remedy=remedy))


class _Vectors:
    """A column of lists of numbers, flat: `numbers[starts[row]:][:widths[row]]` is a row's vector."""

    def __init__(self, file: Path, table: pa.Table, name: str) -> None:
        lists = _one_array(table.column(name))
        if isinstance(lists, pa.ExtensionArray):
            lists = lists.storage
        if pa.types.is_null(lists.type):
            lists = pa.nulls(len(lists), pa.list_(pa.float64()))
        if not _is_vector(lists.type):
            raise SourceError(f"{file}: column {name!r} is {lists.type}; it must be lists of numbers")
        # flatten() honours the offset of a slice and leaves out the slots under null rows; .values does neither.
        flat = lists.flatten()
        self.present = lists.is_valid().to_numpy(zero_copy_only=False)
        widths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        self.widths = np.where(self.present, widths, 0)
        self.starts = np.cumsum(self.widths) - self.widths
        self.nulls = np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False)) if flat.null_count else None
        self.numbers = flat.to_numpy(zero_copy_only=False)
        self._shared = _shared(flat)

    def row(self, row: int) -> list[float | int]:
        start = self.starts[row]
        return [_as_written(value) for value in self.numbers[start : start + self.widths[row]]]

    def matrix(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """(n, k) of these rows, which are equally wide; no rows give (0, 1)."""
        if len(rows) == 0:
            return np.empty((0, 1))
        if len(rows) == len(self.widths):
            return np.asarray(self.numbers).reshape(len(rows), -1)
        width = int(self.widths[rows[0]])
        return np.asarray(self.numbers[self.starts[rows][:, None] + np.arange(width)])

    def tensor(self, rows: np.ndarray[Any, Any], written_as: VarianceAs = VarianceAs.VARIANCE) -> torch.Tensor:
        """(n, k) of these rows as float32 means, or as variances that are written in that way."""
        everything = len(rows) == len(self.widths) > 0
        if everything and self._shared is not None and written_as is VarianceAs.VARIANCE:
            return self._shared.view(len(rows), -1)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return torch.from_numpy(_variances(self.matrix(rows), written_as).astype(np.float32))

    def defects(self) -> Iterator[tuple[int, object, str]]:
        for row in np.flatnonzero(~self.present).tolist():
            yield int(row), None, "it must not be null"
        for row in np.flatnonzero(self.present & (self.widths == 0)).tolist():
            yield int(row), [], "it must not be empty"
        for row in np.flatnonzero(self.widths > MAX_DIMENSIONS).tolist():
            yield int(row), None, f"it has {self.widths[row]} components; at most {MAX_DIMENSIONS} are supported"
        if self.nulls is not None:
            ends = self.starts + self.widths
            for flat in self.nulls:
                row = int(np.searchsorted(ends, flat, side="right"))
                yield row, None, f"component {flat - self.starts[row]}: it must not be null"


def _shared(flat: pa.Array) -> torch.Tensor | None:
    """The memory of numbers that are float32 already; None where it is of others, or of many more than these.

    A slice that shared it would keep all that it was cut from in memory.
    """
    if flat.type != pa.float32() or flat.null_count or flat.buffers()[1].size > 2 * flat.nbytes:
        return None
    return from_dlpack(flat)


def _is_vector(kind: Any) -> bool:
    types = pa.types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_list and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)))


def _id_defects(ids: pa.Array) -> Iterator[tuple[int, object, str]]:
    sizes = pc.fill_null(pc.binary_length(ids), 0).to_numpy(zero_copy_only=False)
    for row in np.flatnonzero((sizes == 0) | (sizes > MAX_ID_BYTES)).tolist():
        value = ids[int(row)].as_py()
        if value is None:
            yield int(row), None, "it must not be null"
        elif sizes[row] == 0:
            yield int(row), value, "it must not be empty"
        else:
            yield int(row), value, f"it has {sizes[row]} bytes in UTF-8; at most {MAX_ID_BYTES} are accepted"


def _variances(spreads: np.ndarray[Any, Any], variance_as: VarianceAs) -> np.ndarray[Any, Any]:
    if variance_as is VarianceAs.VARIANCE:
        return spreads
    wide = spreads.astype(np.float64)
    if variance_as is VarianceAs.LOGVAR:
        return np.asarray(np.exp(wide))
    # With the sign kept, a negative deviation stays a defect that the validator of Gaussians sees.
    return np.asarray(wide * np.abs(wide))


def _payload(file: Path, table: pa.Table, columns: Columns) -> pa.Table | None:
    names = [name for name in table.column_names if name not in (columns.id, columns.mean, columns.variance)]
    if not names:
        return None
    payload = table.select(names).replace_schema_metadata(None)
    for position, name in enumerate(names):
        column = plain(payload.column(position))
        payload = payload.set_column(position, name, column)
        try:
            column[:1].take(pa.array(range(len(column[:1]))))
        except pa.ArrowNotImplementedError as error:
            # Rows are taken from an index when they are found: too late to learn that Arrow cannot.
            raise SourceError(
                f"{file}: column {name!r} is {column.type}, which cannot be payload; convert it, or leave it out"
            ) from error
        zone = unknown_zone(column.type)
        if zone is not None:
            raise SourceError(
                f"{file}: column {name!r} has times of {zone!r}, which is no time zone that is known here; convert it, "
                "or leave it out"
            )
    return payload


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _as_written(value: Any) -> float | int:
    # Through text, because float(np.float32(0.1)) shows digits that nobody wrote.
    return float(str(value)) if np.issubdtype(type(value), np.floating) else int(value)
