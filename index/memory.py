"""How much memory is left, so that an index that does not fit is refused with a message instead of being killed."""

from pathlib import Path

import psutil
import torch

from index.errors import InsufficientMemoryError
from index.manifest import Manifest
from index.scanning import SCANNED

__all__ = ["available_memory", "require_memory"]

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


def require_memory(manifest: Manifest, path: Path, device: torch.device, *, copies: int = 1) -> None:
    """Raises InsufficientMemoryError, naming both sizes, where the vectors of an index do not fit on the device.

    `copies` is the number of processes that will each hold them. On a CPU a segment is read before it is folded.
    """
    needed = 4 * SCANNED.width(manifest.k) * manifest.documents
    if manifest.codes is not None:
        # As read, together, and laid out for the scan.
        needed, device = 3 * manifest.codes.code_bytes * manifest.documents, torch.device("cpu")
        if manifest.codes.graph is not None:
            needed += manifest.codes.graph.file.bytes
        elif manifest.codes.lists is not None:
            # The number of each, in its list and in those that are laid out for the scan, and its list.
            needed += 24 * manifest.documents
    elif device.type == "cpu" and manifest.encoding is not SCANNED:
        needed += 4 * manifest.encoding.width(manifest.k) * max(segment.documents for segment in manifest.segments)
    needed *= copies
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if needed > available:
        raise InsufficientMemoryError(
            f"the vectors of {path} take {needed / 2**30:.2f} GiB; {device} has {available / 2**30:.2f} GiB free: "
            "use a machine with more memory"
        )
