"""The files that sources of a corpus name: files themselves, folders of them, and glob patterns."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from index.errors import SourceError
from index.formats import is_known
from index.rows import base_suffix

__all__ = ["files_of"]

ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""How the address of something on another machine begins. As a path, it has lost one of its slashes."""

OF_GAUSSIANS: Final = (
    "Gaussians are read from Parquet, Arrow, NPZ, safetensors and JSON Lines, with columns id, mean and variance"
)


def files_of(
    sources: Sequence[str | Path], apart_from: Sequence[Path], suffixes: Sequence[str]
) -> tuple[tuple[Path, ...], frozenset[Path]]:
    """The files that sources name, in order and each once, and those, resolved, that are or lie in one of `apart_from`.

    Raises SourceError for a source that is missing, that names nothing, or whose format is not known by its suffix.
    """
    files: dict[Path, Path] = {}
    left_out: set[Path] = set()
    apart = [path.resolve() for path in apart_from]
    for source in sources:
        for file in _expand(source, suffixes):
            resolved = file.resolve()
            if any(resolved.is_relative_to(path) for path in apart):
                left_out.add(resolved)
            else:
                files.setdefault(resolved, file)
    if not files:
        outside = f" outside of {', '.join(map(str, apart_from))}" if apart_from and sources else ""
        raise SourceError(f"no corpus was named{outside}")
    return tuple(files.values()), frozenset(left_out)


def _expand(source: str | Path, suffixes: Sequence[str]) -> list[Path]:
    """The files that one source names, sorted."""
    path = Path(source)
    if path.is_dir():
        found = sorted(_inside(path, suffixes))
        if not found:
            raise SourceError(f"{path}: there is no file in it whose name ends in {_in_words(suffixes)}")
        return found
    if ADDRESS.match(str(source)) and not path.exists():
        raise SourceError(f"{source}: sources are files on this machine: download it, and name the file")
    # A path that exists is that path, whatever brackets its name holds.
    if path.exists() or not glob.has_magic(str(source)):
        found = [path]
    else:
        # Path.glob takes no absolute pattern.
        names = glob.glob(str(source), recursive=True)  # noqa: PTH207
        found = sorted(path for path in map(Path, names) if path.is_file())
        if not found:
            raise SourceError(f"{source}: no file has such a name")
    for file in found:
        if not file.is_file():
            raise SourceError(f"{file}: there is no such file")
        if not is_known(file, suffixes):
            raise SourceError(f"{file}: {_unknown(file, suffixes)}")
    return found


def _inside(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(parent, name)
            if not name.startswith(".") and is_known(file, suffixes) and file.is_file():
                yield file


def _unknown(file: Path, suffixes: Sequence[str]) -> str:
    """Why a file is not read, and what is to be done."""
    texts, suffix = ".tsv" in suffixes, base_suffix(file)
    if suffix == ".tsv" and not texts:
        return f"it holds texts, of which a model makes Gaussians: name one with --model. {OF_GAUSSIANS}"
    if ".csv" in file.suffixes[-2:]:
        remedy = "make it TSV (an id, a tab and a text, nothing quoted), JSON Lines or Parquet"
        return f"CSV is not read: {remedy}" + ("" if texts else f", with --model where it holds texts. {OF_GAUSSIANS}")
    return f"its format is not known; names end in {_in_words(suffixes)}"


def _in_words(suffixes: Sequence[str]) -> str:
    lines = [".jsonl", ".ndjson"] + [".tsv"] * (".tsv" in suffixes)
    return f"{', '.join(suffixes)} ({', '.join(lines[:-1])} and {lines[-1]} also with .gz or .zst)"
