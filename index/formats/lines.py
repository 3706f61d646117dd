"""Files of lines, plain or compressed: read line by line, so that every message can name its line."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import zstandard

from index.errors import SourceError
from index.rows import place

__all__ = ["MAX_LINE_BYTES", "lines_of"]

MAX_LINE_BYTES: Final = 64 * 2**20
"""The longest line read; also about how many bytes of lines one batch takes, however many rows it was asked for."""

_ZSTD_INPUT: Final = 4096
# One call returns everything its input expands to, which is at most 128 KiB for every 4 bytes: 128 MiB.


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their 1-based numbers."""
    number = 0
    try:
        with _open(path) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise SourceError(f"{place(path, number)}: it is longer than {MAX_LINE_BYTES} bytes")
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise SourceError(f"{place(path, number + 1)}: the file cannot be read on: {error}") from error


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    suffix = path.suffix.lower()
    if suffix in (".gz", ".zst") and path.stat().st_size == 0:
        raise EOFError("it is empty, where even an empty compressed file has a header")
    if suffix == ".gz":
        return gzip.open(path, "rb")
    if suffix == ".zst":
        return io.BufferedReader(_ZstdFile(path), buffer_size=2**17)
    return path.open("rb")


class _ZstdFile(io.RawIOBase):
    """The frames of a zstd file, one after another.

    zstandard's own stream readers take the end of the file for the end of a frame, and so read a truncated file without
    a word.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("rb")
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            if not self._fill():
                return 0
        size = min(len(buffer), len(self._pending))
        buffer[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        return size

    def _fill(self) -> bool:
        compressed = self._file.read(_ZSTD_INPUT)
        if not compressed:
            if self._frame is not None:
                raise EOFError("the compressed file ends in the middle of a frame")
            return False
        pieces = []
        while compressed:
            frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            pieces.append(frame.decompress(compressed))
            self._frame, compressed = (None, frame.unused_data) if frame.eof else (frame, b"")
        self._pending = memoryview(b"".join(pieces))
        return True

    def close(self) -> None:
        self._file.close()
        super().close()
