"""Who could reach the service: without a search key it listens where only this machine does, unless told otherwise."""

import ipaddress
import socket

from index.errors import GaussearchError
from service.keys import Keys
from service.settings import ServiceSettings

__all__ = ["ExposedError", "is_loopback", "require_key_or_loopback"]


class ExposedError(GaussearchError):
    """A service that other machines could search without a key."""

    code = "exposed"


def require_key_or_loopback(settings: ServiceSettings, keys: Keys) -> None:
    """Raises ExposedError where other machines could search without a key and nobody has said that they may.

    An admin key is no help: it locks what writes, and leaves searches open.
    """
    if keys.search or settings.allow_anonymous or is_loopback(settings.host):
        return
    raise ExposedError(
        f"other machines may reach {settings.host or 'every address'}, and there is no search key. Set one "
        "(--api-key-file FILE, or GAUSSEARCH_API_KEY), or say that whoever reaches the port may search "
        "(--allow-anonymous, or GAUSSEARCH_ALLOW_ANONYMOUS=true)"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a socket that listens on `host`: every address of it is a loopback address.

    Names are looked up, as they are to listen on them. Raises OSError for a name without an address.
    """
    if not host:
        return False  # every address of this machine
    try:
        return _is_loopback_address(host)
    except ValueError:
        # No address but a name: getaddrinfo gives one or several, or an error.
        found = _addresses(host)
    return all(map(_is_loopback_address, found))


def _is_loopback_address(text: str) -> bool:
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _addresses(host: str) -> list[str]:
    try:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        # A name with a part that is empty or too long is none that could be looked up.
        why = getattr(error, "strerror", None) or error
        raise OSError(f"{host} cannot be listened on: {why}") from error
