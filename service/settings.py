"""Every setting of the service, declared once: the environment, the command line and the README's table follow it."""

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from index import IndexDirectory, Precision
from index.remote.cache import CacheOptions
from index.retention import MOST_HOURS
from index.text import TextPrecision

__all__ = ["ENV_PREFIX", "ServiceSettings", "parts"]

ENV_PREFIX = "GAUSSEARCH_"


class ServiceSettings(BaseSettings):
    """Settings come from the command line first, then from GAUSSEARCH_* variables, then from the defaults."""

    # Errors do not repeat what was given: it may be a key.
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True, hide_input_in_errors=True)

    # Not a Path where it is text: a URI would lose a slash.
    index: Annotated[
        str | Path,
        Field(
            union_mode="left_to_right",
            description="Index to serve: its directory, or s3://bucket/prefix, gs://… or az://….",
        ),
    ]
    cache: Annotated[
        Path | None,
        Field(
            description="Folder for what is fetched of an index in object storage; gaussearch in XDG_CACHE_HOME or "
            "~/.cache if not set."
        ),
    ] = None
    cache_bytes: Annotated[
        PositiveInt | None,
        Field(
            description="Bytes that the cache may have, for all processes together; four fifths of what the disk has "
            "free if not set."
        ),
    ] = None
    host: Annotated[
        str,
        Field(description="Address to listen on; 0.0.0.0 for all, which takes a search key or allow-anonymous."),
    ] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 lets the system choose.")] = 8080
    allow_anonymous: Annotated[
        bool, Field(description="Serve other machines without a search key: whoever reaches the port may search.")
    ] = False
    workers: Annotated[
        PositiveInt, Field(description="Processes, each with the index in memory. One is best: searches use all cores.")
    ] = 1
    device: Annotated[str, Field(description="Where to search: auto, cpu, cuda or cuda:N.")] = "auto"
    model: Annotated[
        str | None,
        Field(
            description="Model that reads words in place of Gaussians, the one that the index was built with: its "
            "folder, package:NAME of an installed package, or hub:NAME."
        ),
    ] = None
    model_precision: Annotated[
        TextPrecision, Field(description="What it computes in; auto: bfloat16 where that is measured to be faster.")
    ] = TextPrecision.AUTO
    max_text_letters: Annotated[PositiveInt, Field(description="Letters of a text at most.")] = 20_000
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
        SecretStr | None,
        Field(description="Search key: /v1 requests must carry it, or an admin key. Several are separated by commas."),
    ] = None
    api_key_file: Annotated[
        Path | None,
        Field(description="File of search keys, one a line; empty lines and those that begin with # are left out."),
    ] = None
    admin_key: Annotated[
        SecretStr | None,
        Field(
            description="Key that requests which change the index must carry; there are none without one. Several are "
            "separated by commas."
        ),
    ] = None
    admin_key_file: Annotated[Path | None, Field(description="File of admin keys, like that of search keys.")] = None
    tls_certificate: Annotated[
        Path | None, Field(description="Certificate to serve HTTPS with: PEM, followed by those that lead to its root.")
    ] = None
    tls_key: Annotated[Path | None, Field(description="Private key of that certificate: PEM.")] = None
    tls_key_password: Annotated[
        SecretStr | None, Field(description="Password of an encrypted private key; best set by the variable.")
    ] = None
    cors_origins: Annotated[
        str | None,
        Field(
            description="Web pages whose scripts may read answers: origins such as https://a.example, separated by "
            "commas, or * for all. None if not set."
        ),
    ] = None
    page: Annotated[bool, Field(description="Serve a page to search with at /.")] = True
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
    max_documents: Annotated[
        PositiveInt, Field(description="Documents in one write, and ids in one deletion, at most.")
    ] = 1_000
    queue_documents: Annotated[
        PositiveInt, Field(description="Documents that may wait to be written; further ones are answered 429.")
    ] = 10_000
    keep_generations: Annotated[
        int, Field(ge=2, description="Generations that are kept when documents are written, the live one among them.")
    ] = 2
    keep_hours: Annotated[
        float,
        Field(
            ge=0,
            le=MOST_HOURS,
            allow_inf_nan=False,
            description="Younger generations than so many hours are kept, too.",
        ),
    ] = 0.0
    max_body_bytes: Annotated[PositiveInt, Field(description="Largest request body in bytes.")] = 16 * 2**20
    queue_bytes: Annotated[
        PositiveInt,
        Field(description="Bytes of all request bodies that are arriving at once; further ones are answered 429."),
    ] = 256 * 2**20
    max_connections: Annotated[
        PositiveInt,
        Field(description="Connections at once, per process; on further ones a request is answered 429 and closes it."),
    ] = 1_000
    max_header_bytes: Annotated[
        PositiveInt, Field(description="Largest head of a request in bytes: its path and headers.")
    ] = 16 * 2**10
    header_seconds: Annotated[
        PositiveFloat, Field(allow_inf_nan=False, description="Seconds in which the head of a request must arrive.")
    ] = 10.0
    unread_seconds: Annotated[
        PositiveFloat,
        Field(
            allow_inf_nan=False,
            description="Seconds after which a response of which a client reads nothing is dropped.",
        ),
    ] = 60.0
    shutdown_seconds: Annotated[
        PositiveInt, Field(description="Seconds that requests under way have to finish at shutdown.")
    ] = 30
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="Least severity logged.")] = (
        "info"
    )
    log_format: Annotated[Literal["json", "text"], Field(description="Form of log lines.")] = "json"

    @field_validator("api_key", "admin_key")
    @classmethod
    def _has_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not all(parts(value.get_secret_value())):
            raise ValueError("must not hold an empty key")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _has_origins(cls, value: str | None) -> str | None:
        if value is None or value.strip() == "*":
            return value
        for origin in parts(value):
            split = urlsplit(origin)
            if f"{split.scheme}://{split.netloc}" != origin or not split.netloc or "*" in origin:
                raise ValueError(f"{origin!r} is not an origin: give scheme://host or scheme://host:port, or * alone")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: give both or neither")
        if self.tls_key_password is not None and self.tls_key is None:
            raise ValueError("tls_key_password is that of tls_key, which is not given")
        if self.workers > 1 and (self.admin_key is not None or self.admin_key_file is not None):
            raise ValueError(
                "an admin key takes one process: what one of several workers writes, the others would see later; "
                "set workers to 1, or no admin key"
            )
        return self

    @property
    def directory(self) -> IndexDirectory:
        """The index to serve; raises as IndexDirectory.of."""
        return IndexDirectory.of(self.index, CacheOptions(self.cache, self.cache_bytes))

    @property
    def origins(self) -> list[str]:
        """The members of `cors_origins`; empty where no other web page's scripts may read answers."""
        return [] if self.cors_origins is None else parts(self.cors_origins)


def parts(text: str) -> list[str]:
    """The members of a list that is separated by commas."""
    return [part.strip() for part in text.split(",")]
