"""A connection to a cluster of Ray, which is joined where it is named, and else started on this machine.

Ray is an extra: nothing here or elsewhere imports it before it is asked for.
"""

import contextlib
import importlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from typing import Any, Final

from index.errors import ClusterError

__all__ = ["address_of", "ray_module", "ray_session"]

LOCAL: Final = "local"
"""What Ray calls a cluster of this machine alone, that begins and ends with the process."""

LOOPBACK: Final = {
    # Ray's only way to have a node listen on loopback alone. Who reaches a node runs what they like on it.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
KNOCK_SECONDS: Final = 10.0
QUIET: Final = {"RAY_USAGE_STATS_ENABLED": "0"}


def address_of(given: str) -> str:
    """The address of the cluster that is meant: what is given, else what RAY_ADDRESS names, else LOCAL."""
    return given or os.environ.get("RAY_ADDRESS", "") or LOCAL


def ray_module() -> Any:
    """Ray itself; raises ClusterError where it is not installed."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ClusterError("Ray is not installed: pip install 'gaussearch[ray]'") from error


@contextlib.contextmanager
def ray_session(address: str = "") -> Iterator[Any]:
    """Ray, connected to the cluster at an address (see `address_of`), and disconnected after the block.

    A cluster that is started here listens on loopback alone, shows no dashboard, reports no usage, and ends with the
    block. Where this process is connected already, it stays with that cluster, and connected. Raises ClusterError where
    Ray is not installed or the cluster cannot be reached.
    """
    where = address_of(address)
    for name, value in (QUIET | LOOPBACK if where == LOCAL else QUIET).items():
        # Ray reads the second when it is imported.
        os.environ.setdefault(name, value)
    ray = ray_module()
    if ray.is_initialized():
        yield ray
        return
    _connect(ray, where)
    try:
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    options = {"include_dashboard": False} if address == LOCAL else {}
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        said = str(error).partition("\n")[0]
        if address == LOCAL:
            raise ClusterError(f"no Ray cluster could be started on this machine: {said}") from error
        raise ClusterError(
            f"the Ray cluster at {address} cannot be joined: {said}. Start one there (ray start --head), or name "
            "another (--ray ADDRESS, or the variable RAY_ADDRESS)"
        ) from error


def _knock(address: str) -> None:
    """Raises OSError where nobody listens at an address, of which Ray would not be sure for many minutes."""
    found = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if found is not None:
        socket.create_connection((found[1], int(found[2])), KNOCK_SECONDS).close()
