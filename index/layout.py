"""What lies where in the directory of an index.

my-index/
  CURRENT                     name and checksum of the live manifest; replaced atomically (index.current)
  manifests/00000007.json     one generation, immutable (index.manifest.Manifest)
  manifests/00000007.blake3   what CURRENT said while it was live, for whoever goes back to it
  deletes/<id>-00000007.npy   rows of a segment that were deleted by that generation; immutable
  pins/00000007               says that a generation is to be kept
  pins/00000007-<any>.held    held while that generation is being copied (index.holding)
  codebooks/<id>.safetensors  what the codes of a generation mean (index.codebook); immutable, like segments
  structures/<id>.*           the graph over the documents of a generation, or their lists; immutable
  segments/<id>/              immutable once a manifest names it (index.segments)
  staging/                    what an unfinished build has done (index.staging); never read by a searcher
  .lock                       held by the one process that writes (index.locking)
"""

from enum import StrEnum
from pathlib import Path, PurePosixPath

__all__ = ["MANIFESTS", "RECORDS", "Folder", "Layout", "manifest_name", "record_name"]

MANIFESTS, RECORDS = "[0-9]" * 8 + ".json", "[0-9]" * 8 + ".blake3"
"""What the two files of a generation are called, in manifests/."""


class Folder(StrEnum):
    """What the folders of an index are called."""

    MANIFESTS = "manifests"
    SEGMENTS = "segments"
    CODEBOOKS = "codebooks"
    STRUCTURES = "structures"
    DELETES = "deletes"
    PINS = "pins"
    STAGING = "staging"


def manifest_name(generation: int) -> PurePosixPath:
    """What the manifest of a generation is called in an index, or a backup."""
    return PurePosixPath(Folder.MANIFESTS, f"{generation:08d}.json")


def record_name(generation: int) -> PurePosixPath:
    """What the file is called in which it stands what CURRENT said while that generation was live."""
    return PurePosixPath(Folder.MANIFESTS, f"{generation:08d}.blake3")


class Layout:
    """The paths of an index. Making one touches nothing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.current_file = self.path / "CURRENT"
        self.lock_file = self.path / ".lock"
        self.manifests = self.path / Folder.MANIFESTS
        self.segments = self.path / Folder.SEGMENTS
        self.codebooks = self.path / Folder.CODEBOOKS
        self.structures = self.path / Folder.STRUCTURES
        self.deletes = self.path / Folder.DELETES
        self.pins = self.path / Folder.PINS
        self.staging = self.path / Folder.STAGING

    @property
    def folders(self) -> tuple[Path, ...]:
        """All that there can be in it."""
        return (
            self.manifests,
            self.segments,
            self.codebooks,
            self.structures,
            self.deletes,
            self.pins,
            self.staging,
        )

    def manifest_file(self, generation: int) -> Path:
        """Where the manifest of a generation lies."""
        return self.path / manifest_name(generation)

    def record_file(self, generation: int) -> Path:
        """Where it stands what CURRENT said while that generation was live."""
        return self.path / record_name(generation)
