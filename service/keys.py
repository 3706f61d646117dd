"""The keys that open the service: where they come from, and what they must be."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import SecretStr

from index.errors import GaussearchError
from service.files import contents_of
from service.settings import ServiceSettings, parts

__all__ = ["LEAST_BYTES", "Keys", "KeysError"]

LEAST_BYTES = 16
"""A key is guessed at over the network, a few thousand times a second at most: 16 random letters are out of reach."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class KeysError(GaussearchError):
    """Keys that the service does not start with."""

    code = "bad_keys"


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """Every key that is accepted, as the bytes that a request carries; none of them shows in `repr`.

    Several of a kind are for rotation: add the new one, hand it out, take the old one away. `admin` keys open what
    `search` keys open too. Without `search` keys anyone may search; without `admin` keys nobody may write.
    """

    search: tuple[bytes, ...] = ()
    admin: tuple[bytes, ...] = ()

    @classmethod
    def load(cls, settings: ServiceSettings) -> Self:
        """The keys of the settings and of the files that they name.

        Raises KeysError for a file that cannot be read or is without a key, for a key that is both a search and an
        admin key, and for one shorter than LEAST_BYTES. A short search key is refused in a file alone: as a setting it
        has always been taken.
        """
        in_file = _of_file(settings.api_key_file, "--api-key-file")
        search = (*_of_setting(settings.api_key), *in_file)
        admin = (*_of_setting(settings.admin_key), *_of_file(settings.admin_key_file, "--admin-key-file"))
        _require_length(in_file, f"in {settings.api_key_file}")
        _require_length(admin, "among the admin keys")
        if set(search) & set(admin):
            raise KeysError(
                "a key is both a search and an admin key, so whoever may search could write: make another; "
                "an admin key opens searches without being a search key"
            )
        return cls(tuple(dict.fromkeys(search)), tuple(dict.fromkeys(admin)))

    @property
    def short(self) -> int:
        """How many search keys are shorter than LEAST_BYTES."""
        return sum(len(key) < LEAST_BYTES for key in self.search)

    def __repr__(self) -> str:
        return f"Keys({len(self.search)} search, {len(self.admin)} admin)"


def _of_setting(value: SecretStr | None) -> tuple[bytes, ...]:
    return () if value is None else tuple(key.encode() for key in parts(value.get_secret_value()))


def _of_file(path: Path | None, option: str) -> tuple[bytes, ...]:
    if path is None:
        return ()
    lines = (line.strip() for line in contents_of(path, option, KeysError).removeprefix(_BYTE_ORDER_MARK).splitlines())
    keys = tuple(line for line in lines if line and not line.startswith(b"#"))
    if not keys:
        raise KeysError(f"{option}: {path} holds no key: write one a line")
    return keys


def _require_length(keys: tuple[bytes, ...], where: str) -> None:
    short = sum(len(key) < LEAST_BYTES for key in keys)
    if short:
        raise KeysError(
            f"{short} of {len(keys)} keys {where} are shorter than {LEAST_BYTES} bytes, and could be guessed: "
            "make one with openssl rand -hex 32"
        )
