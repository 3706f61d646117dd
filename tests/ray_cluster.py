"""Clusters of Ray on this machine, for tests: every node a raylet on loopback, small, and without a dashboard."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

__all__ = ["ENVIRONMENT", "RayNodes", "ray_environment", "ray_nodes"]

OBJECT_STORE_BYTES = 80_000_000
"""About the least that Ray takes."""

ENVIRONMENT: Final = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # What a raylet otherwise takes for its address is that of the network, which no test listens on.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # The driver says what is wrong; a worker's process that is slow to begin, on a busy machine, is not.
    "RAY_worker_register_timeout_seconds": "300",
}


@dataclass(frozen=True, slots=True)
class RayNodes:
    """A cluster of this machine, to which nothing is connected yet."""

    cluster: Any

    @property
    def address(self) -> str:
        """What --ray and RAY_ADDRESS take."""
        return str(self.cluster.address)

    def add(self, cpus: int = 1, **options: Any) -> Any:
        """One more node, which `remove` takes."""
        return self.cluster.add_node(
            num_cpus=cpus,
            object_store_memory=OBJECT_STORE_BYTES,
            node_ip_address="127.0.0.1",
            include_dashboard=False,
            **options,
        )

    def remove(self, node: Any) -> None:
        """Kills a node and all that runs there."""
        self.cluster.remove_node(node, allow_graceful=False)

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """This process as a driver of the cluster."""
        import ray

        ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def ray_environment() -> Iterator[None]:
    """The variables that Ray's workers are to find; those of Ray itself tests/conftest.py sets for good."""
    with pytest.MonkeyPatch.context() as patch:
        # The workers import what the tests do.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
        # One that runs beside the tests is nobody's business here.
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@contextlib.contextmanager
def ray_nodes(*cpus: int) -> Iterator[RayNodes]:
    """A cluster with a node for each number, that of its CPUs; the first is the head. It ends with the block.

    A module's fixture of its own: starting takes some seconds.
    """
    with ray_environment():
        from ray.cluster_utils import Cluster

        nodes = RayNodes(Cluster(shutdown_at_exit=True))
        try:
            for each in cpus or (1,):
                nodes.add(each)
            yield nodes
        finally:
            nodes.cluster.shutdown()
