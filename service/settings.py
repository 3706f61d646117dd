"""Every setting of the service, declared once: the environment, the command line and the README's table follow it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from index import Precision

__all__ = ["ENV_PREFIX", "ServiceSettings"]

ENV_PREFIX = "GAUSSEARCH_"


class ServiceSettings(BaseSettings):
    """Settings come from the command line first, then from GAUSSEARCH_* variables, then from the defaults."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True)

    index: Annotated[Path, Field(description="Directory of the index to serve.")]
    host: Annotated[str, Field(description="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 lets the system choose.")] = 8080
    workers: Annotated[
        PositiveInt, Field(description="Processes, each with the index in memory. One is best: searches use all cores.")
    ] = 1
    device: Annotated[str, Field(description="Where to search: auto, cpu, cuda or cuda:N.")] = "auto"
    precision: Annotated[
        Precision,
        Field(
            description="What kind flat is scanned in: float32, bfloat16 (half the memory, as exact), or auto: "
            "bfloat16 where it is measured to be faster."
        ),
    ] = Precision.AUTO
    threads: Annotated[
        PositiveInt | None,
        Field(description="Cores that one search uses; all of them, divided by workers, if not set."),
    ] = None
    api_key: Annotated[
        SecretStr | None, Field(description="Key that /v1 requests must carry; several are separated by commas.")
    ] = None
    verify: Annotated[bool, Field(description="Check every checksum of an index before serving it.")] = True
    reload_seconds: Annotated[
        PositiveFloat, Field(description="Seconds between looks for a newly published generation.")
    ] = 2.0
    max_batch_rows: Annotated[PositiveInt, Field(description="Queries that are searched together at most.")] = 128
    queue_rows: Annotated[PositiveInt, Field(description="Queries that may wait; further ones are answered 429.")] = (
        1024
    )
    timeout_ms: Annotated[
        PositiveInt, Field(description="Milliseconds a request may take unless it sets X-Request-Timeout-Ms.")
    ] = 10_000
    max_timeout_ms: Annotated[PositiveInt, Field(description="Largest X-Request-Timeout-Ms.")] = 60_000
    max_top_k: Annotated[PositiveInt, Field(description="Largest top_k.")] = 1_000
    max_candidates: Annotated[PositiveInt, Field(description="Largest candidates.")] = 10_000
    max_nprobe: Annotated[PositiveInt, Field(description="Largest nprobe.")] = 10_000
    max_queries: Annotated[PositiveInt, Field(description="Queries in one batch request at most.")] = 256
    max_results: Annotated[
        PositiveInt, Field(description="Documents in one response at most: queries times top_k.")
    ] = 10_000
    max_body_bytes: Annotated[PositiveInt, Field(description="Largest request body in bytes.")] = 16 * 2**20
    shutdown_seconds: Annotated[
        PositiveInt, Field(description="Seconds that requests under way have to finish at shutdown.")
    ] = 30
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="Least severity logged.")] = (
        "info"
    )
    log_format: Annotated[Literal["json", "text"], Field(description="Form of log lines.")] = "json"

    @field_validator("api_key")
    @classmethod
    def _has_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not all(key.strip() for key in value.get_secret_value().split(",")):
            raise ValueError("must not hold an empty key")
        return value

    def keys(self) -> list[bytes]:
        """The keys that open /v1; empty where none is needed."""
        if self.api_key is None:
            return []
        return [key.strip().encode() for key in self.api_key.get_secret_value().split(",")]
