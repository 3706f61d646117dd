"""How much memory is left, so that an index that does not fit is refused with a message instead of being killed."""

from pathlib import Path

import psutil
import torch

from index.errors import InsufficientMemoryError
from index.manifest import Manifest

__all__ = ["available_memory", "require_memory"]

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that this process can still take: the machine's available memory or the container's limit, if lower."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return available
    return available if limit == "max" else min(available, max(0, int(limit) - used))


def require_memory(manifest: Manifest, path: Path, device: torch.device) -> None:
    """Raises InsufficientMemoryError, naming both sizes, where the vectors of an index do not fit on the device."""
    needed = 4 * manifest.encoding.width(manifest.k) * manifest.documents
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if needed > available:
        raise InsufficientMemoryError(
            f"the vectors of {path} take {needed / 2**30:.2f} GiB; {device} has {available / 2**30:.2f} GiB free: "
            "use a machine with more memory, or build with --encoding folded, which takes a third less"
        )
