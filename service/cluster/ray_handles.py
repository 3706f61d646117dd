"""A shard's deployment as a ShardHandle: Ray Serve chooses the process, and what it raises is told apart here."""

import asyncio
import logging
from typing import Any

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    RpcError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from service.cluster.scatter import LostError, Question
from service.problems import OverloadedError

__all__ = ["RayShard"]

logger = logging.getLogger("gaussearch.cluster")

LOST = (
    RayActorError,
    WorkerCrashedError,
    NodeDiedError,
    OutOfMemoryError,
    # A large answer waits on the machine of whoever gave it.
    ObjectLostError,
    RpcError,
    ReplicaUnavailableError,
    DeploymentUnavailableError,
)
"""What is raised where whoever was asked has died, has not begun or cannot be reached."""


class RayShard:
    """A service.cluster.scatter.ShardHandle."""

    def __init__(self, handle: "DeploymentHandle[Any]", number: int) -> None:
        self._handle, self._number = handle, number

    async def ask(self, token: str, question: Question) -> Any:
        """As ShardHandle: of processes that have the generation open, if there are such."""
        method, *arguments = question
        response = self._handle.options(method_name=method, multiplexed_model_id=token).remote(*arguments)
        try:
            return await response
        except asyncio.CancelledError as error:
            # Whoever asked has given up; so should the process, and whatever waits to be sent to it.
            response.cancel()  # type: ignore[no-untyped-call]
            its = asyncio.current_task()
            if its is None or its.cancelling():
                raise
            # Nobody here has: it has been ended there.
            raise LostError(f"shard {self._number}: the call was cancelled") from error
        except BackPressureError as error:
            raise OverloadedError(
                f"too many calls wait for shard {self._number}: try again later", headers={"Retry-After": "1"}
            ) from error
        except LOST as error:
            raise LostError(f"shard {self._number}: {error}") from error
        except RayTaskError as error:
            raise error.cause from error

    async def warm(self, token: str) -> None:
        """As ShardHandle."""
        response = self._handle.broadcast("warm", token)
        for outcome in await response.results_async(return_exceptions=True):
            if isinstance(outcome, Exception):
                logger.warning("a process of shard %d has not opened %s: %s", self._number, token.split()[0], outcome)
