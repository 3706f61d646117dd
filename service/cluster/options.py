"""Every setting of a service on a Ray cluster that one process has no use for, declared once, as service.settings."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from index.errors import InvalidOptionError
from service.settings import ENV_PREFIX, ServiceSettings

__all__ = ["ClusterSettings", "ServeOptions", "require_possible"]


class ClusterSettings(BaseSettings):
    """Settings come from the command line first, then from GAUSSEARCH_* variables, then from the defaults."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True)

    shards: Annotated[
        PositiveInt | None,
        Field(description="Shards that documents are spread over; as few as their machines' memory allows if not set."),
    ] = None
    replicas: Annotated[
        PositiveInt | None,
        Field(description="Processes of each shard; 2 where they find room on two machines, else 1, if not set."),
    ] = None
    max_replicas: Annotated[
        PositiveInt | None, Field(description="Processes of a shard up to which Ray Serve starts more under load.")
    ] = None
    target_requests: Annotated[
        PositiveFloat,
        Field(allow_inf_nan=False, description="Calls under way in a process beyond which Ray Serve starts another."),
    ] = 2.0
    replica_cpus: Annotated[
        PositiveFloat | None,
        Field(
            allow_inf_nan=False, description="Cores of one process of a shard; what there is, shared out, if not set."
        ),
    ] = None
    replica_gpus: Annotated[
        NonNegativeFloat, Field(allow_inf_nan=False, description="GPUs of one process of a shard, or a share of one.")
    ] = 0.0
    replica_memory: Annotated[
        PositiveInt | None,
        Field(description="Bytes of memory set aside for one process; of its size, for two generations, if not set."),
    ] = None
    max_ongoing: Annotated[PositiveInt, Field(description="Calls that one process of a shard takes at once.")] = 64
    max_queued: Annotated[
        PositiveInt,
        Field(
            description="Calls that may wait for a shard, of each ingress; requests with further ones are answered 429."
        ),
    ] = 256
    max_batches: Annotated[
        PositiveInt,
        Field(description="Batches that an ingress has shards search at once, where one does not answer for long."),
    ] = 16
    ingress_replicas: Annotated[PositiveInt, Field(description="Processes that take requests.")] = 1
    ingress_cpus: Annotated[
        NonNegativeFloat, Field(allow_inf_nan=False, description="Cores set aside for each of these.")
    ] = 0.5
    proxies: Annotated[
        Literal["auto", "head", "every-node"],
        Field(
            description="Machines that listen: the head alone, or every one; auto: every one unless the address is "
            "this machine's own."
        ),
    ] = "auto"
    keep_serving: Annotated[
        bool, Field(description="Leave the service in a cluster that was joined when the command ends.")
    ] = False


class ServeOptions(ClusterSettings, ServiceSettings):
    """All that `gaussearch serve` can be told."""


def require_possible(options: ServeOptions) -> None:
    """Raises InvalidOptionError for what one process does and a cluster does not."""
    if options.admin_key is not None or options.admin_key_file is not None:
        raise InvalidOptionError(
            "an admin key takes one process: a cluster takes no writes over HTTP. Change the index with the commands "
            "(gaussearch add, delete, compact, build); the shards take it up"
        )
    if options.port == 0:
        raise InvalidOptionError("port is 0, and all machines of a cluster listen on the same: say which")
    if options.workers > 1:
        raise InvalidOptionError(f"workers is {options.workers}; on a cluster, give ingress-replicas in its place")
