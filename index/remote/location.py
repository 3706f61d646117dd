"""Where an index lies: in a folder, or in object storage that a URI names."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import unquote, urlsplit

from blake3 import blake3

from index.errors import InvalidOptionError

__all__ = ["REMOTE_SCHEMES", "Location", "parse_location"]

REMOTE_SCHEMES: Final = ("s3", "gs", "az")
"""Object storage that can replace an object on a condition: nothing else keeps two writers apart."""

_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")
_FOLDED = re.compile(r"(s3|gs|az|file):/[^/]")
"""What pathlib makes of a URI."""


@dataclass(frozen=True, slots=True)
class Location:
    """A prefix of object storage: `bucket` is what some call a container, `prefix` has no slash at its ends."""

    scheme: str
    bucket: str
    prefix: str

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Raises InvalidOptionError for what is no such URI, or says more than a place."""
        split = urlsplit(uri)
        if split.query or split.fragment:
            raise InvalidOptionError(f"{uri} has a query or a fragment: settings of storage come from its environment")
        if not split.netloc or "@" in split.netloc or ":" in split.netloc:
            raise InvalidOptionError(
                f"the location of an index is {split.scheme}://bucket/prefix, with neither user nor port: keys and "
                "endpoints come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and the like)"
            )
        parts = split.path.strip("/").split("/")
        if any(part in (".", "..") for part in parts) or (split.path.strip("/") and not all(parts)):
            raise InvalidOptionError(f"{uri} has an empty part, or one that is . or ..: name a plain prefix")
        return cls(split.scheme.lower(), split.netloc, "/".join(parts))

    @property
    def name(self) -> str:
        """By which responses call the index: the last part of the prefix, or the bucket."""
        return self.prefix.rpartition("/")[2] or self.bucket

    @property
    def key(self) -> str:
        """What its folder in a cache is called: no other location's is, on any file system."""
        readable = re.sub(r"[^A-Za-z0-9_-]+", "-", self.name)[:40]
        return f"{readable}-{blake3(str(self).encode()).hexdigest()[:16]}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")


def parse_location(given: str | Path) -> Location | Path:
    """Where an index lies: a path, also for a file:// URI, or a location in object storage.

    Raises InvalidOptionError for a URI of a scheme that is not known, and for one that was made a path, which loses a
    slash.
    """
    if isinstance(given, Path):
        if _FOLDED.match(str(given)):
            raise InvalidOptionError(f"{given} was a URI before it became a Path: give the location as a string")
        return given
    match = _URI.match(given)
    if match is None:
        return Path(given)
    scheme = match["scheme"].lower()
    if scheme == "file":
        split = urlsplit(given)
        if split.netloc not in ("", "localhost") or not split.path:
            raise InvalidOptionError(f"{given} names another machine or nothing: a file URI is file:///absolute/path")
        return Path(unquote(split.path))
    if scheme not in REMOTE_SCHEMES:
        known = ", ".join(f"{name}://" for name in ("file", *REMOTE_SCHEMES))
        raise InvalidOptionError(f"{given}: an index can lie at a path or at {known}, not at {scheme}://")
    return Location.parse(given)
