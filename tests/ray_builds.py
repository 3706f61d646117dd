"""What tests of builds on Ray share: the same index built here and there, and all that is compared of the two."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from index import BuildOptions, BuildSummary, IndexDirectory, build_index
from index.distributed.ray_place import RayOptions, ray_place

__all__ = ["Builds", "contents", "without_dates"]

SAID = ("created_at", "created_by")


@dataclass
class Builds:
    """Builds of the same sources on this machine and on the cluster that this process is connected to."""

    folder: Path

    @property
    def here(self) -> IndexDirectory:
        return IndexDirectory(self.folder / "here")

    @property
    def there(self) -> IndexDirectory:
        return IndexDirectory(self.folder / "there")

    def on_ray(
        self,
        sources: Sequence[Path],
        directory: IndexDirectory | None = None,
        *,
        tasks: int | None = None,
        **options: Any,
    ) -> BuildSummary:
        """Builds on the cluster."""
        with ray_place(RayOptions(tasks=tasks)) as place:
            return build_index(sources, directory or self.there, BuildOptions.model_validate(options), place=place)

    def both(self, sources: Sequence[Path], **options: Any) -> BuildSummary:
        """Builds in both places, and requires every byte to be the same."""
        build_index(sources, self.here, BuildOptions.model_validate(options))
        built = self.on_ray(sources, **options)
        assert contents(self.there) == contents(self.here)
        assert not self.there.staging.exists()
        return built

    def said(self, error: type[Exception], sources: Sequence[Path], **options: Any) -> tuple[str, str]:
        """What is said here and there where nothing can be built of them."""
        with pytest.raises(error) as here:
            build_index(sources, self.here, BuildOptions.model_validate(options))
        with pytest.raises(error) as there:
            self.on_ray(sources, **options)
        return (
            str(here.value).replace(str(self.here.path), "INDEX"),
            str(there.value).replace(str(self.there.path), "INDEX"),
        )


def contents(directory: IndexDirectory) -> dict[str, object]:
    """All files of an index that is published, by their names; manifests without when they were made, and by what."""
    found = {
        path.relative_to(directory.path).as_posix(): path.read_bytes()
        for path in directory.path.rglob("*")
        if path.is_file() and path.name not in (".lock", "CURRENT") and path.suffix != ".blake3"
    }
    return without_dates(found)


def without_dates(found: dict[str, bytes]) -> dict[str, object]:
    """The same with the manifests as what they say, but for when and by what they were made."""
    return {name: _undated(data) if name.startswith("manifests/") else data for name, data in sorted(found.items())}


def _undated(data: bytes) -> dict[str, object]:
    manifest = json.loads(data)
    return {name: value for name, value in manifest.items() if name not in SAID}
