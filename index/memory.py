"""How much memory is left, so that an index that does not fit is refused with a message instead of being killed."""

from pathlib import Path

import psutil
import torch

from index.errors import CorruptIndexError, InsufficientMemoryError
from index.layout import Folder
from index.manifest import Manifest
from index.scanning import SCANNED
from index.storage import IndexDirectory
from index.untrusted import IndexFile

__all__ = ["available_memory", "require_memory", "require_room", "resident_bytes"]

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that this process can still take: the machine's available memory or the container's limit, if lower."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii")) - _page_cache()
    except (OSError, ValueError):
        return available
    return available if limit == "max" else min(available, max(0, int(limit) - used))


def _page_cache() -> int:
    """Bytes that the container's limit counts and that are given back when needed: files that have been read."""
    lines = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    fields = dict(line.split() for line in lines)
    return int(fields.get("inactive_file", 0)) + int(fields.get("active_file", 0))


def resident_bytes(manifest: Manifest, *, rows: int | None = None, on_gpu: bool = False) -> int:
    """Bytes that one process takes to hold what a scan of an index reads, with kind flat in float32.

    `rows` is how many documents are not there yet, all if not set. On a CPU a segment is read before it is folded.
    """
    if rows is None:
        rows = sum(segment.documents for segment in manifest.segments)
    codes = manifest.codes
    if codes is None:
        needed = 4 * SCANNED.width(manifest.k) * rows
        if rows and not on_gpu and manifest.encoding is not SCANNED:
            needed += 4 * manifest.encoding.width(manifest.k) * max(segment.documents for segment in manifest.segments)
        return needed
    # As read, together, and laid out for the scan.
    needed = 3 * codes.code_bytes * rows
    if codes.graph is not None and rows:
        needed += codes.graph.file.bytes
    elif codes.lists is not None:
        # The number of each, in its list and in those that are laid out for the scan, and its list.
        needed += 24 * rows
    return needed


def require_memory(
    manifest: Manifest, directory: IndexDirectory, device: torch.device, *, copies: int = 1, rows: int | None = None
) -> None:
    """Raises InsufficientMemoryError, naming both sizes, where the vectors of an index do not fit on the device.

    `copies` is the number of processes that will each hold them, `rows` how many documents are not there yet, all if
    not set.
    """
    if manifest.codes is not None:
        device = torch.device("cpu")
    needed = copies * resident_bytes(manifest, rows=rows, on_gpu=device.type != "cpu")
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if needed > available:
        if directory.is_local:
            _require_files(manifest, directory.path)
        raise InsufficientMemoryError(
            f"the vectors of {directory} take {needed / 2**30:.2f} GiB; {device} has {available / 2**30:.2f} GiB free: "
            "use a machine with more memory"
        )


def require_room(path: Path, size: int) -> None:
    """Raises InsufficientMemoryError where files of an index, of so many bytes, cannot be read into memory."""
    available = available_memory()
    if size > available:
        raise InsufficientMemoryError(
            f"files of {path} take {size / 2**30:.2f} GiB; there are {available / 2**30:.2f} GiB free: use a machine "
            "with more memory"
        )


def _require_files(manifest: Manifest, path: Path) -> None:
    """Raises CorruptIndexError where segments do not even have the bytes of as many Gaussians as they are said to, or
    a graph or lists are of another size: it is not memory then that is missing."""
    for entry in manifest.segments:
        file = path / Folder.SEGMENTS / entry.id / "gaussians.npy"
        size = file.stat().st_size if file.is_file() else 0
        if size < 8 * manifest.k * entry.documents:
            raise CorruptIndexError(f"{file} has {size} bytes, fewer than {entry.documents} documents take")
    if manifest.structure is not None:
        with IndexFile(path / Folder.STRUCTURES / manifest.structure.name, manifest.structure.file, folders=1).open():
            pass  # of the size that it should have
