"""How long object storage is waited for, and what of it may be plain HTTP."""

import datetime
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

__all__ = ["PATIENCE", "Patience", "client_options", "retry_config", "upload_options"]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long storage is waited for: seconds until it must be connected to, until something more of an answer must
    come, and until a part of a file must be sent and answered; and how often, and for how long in all, a request is
    repeated."""

    connect: float = 10.0
    read: float = 30.0
    upload: float = 300.0
    retries: int = 8
    retry_seconds: float = 120.0
    first_wait: float = 0.1


PATIENCE = Patience()


def client_options() -> "ClientConfig":
    """As obstore takes them."""
    seconds = datetime.timedelta
    options: ClientConfig = {
        "connect_timeout": seconds(seconds=PATIENCE.connect),
        # A file of any size takes any time, as long as something comes.
        "read_timeout": seconds(seconds=PATIENCE.read),
        "timeout": seconds(days=7),
    }
    endpoints = (os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"))
    if any(endpoint.startswith("http://") for endpoint in endpoints):
        # Whoever names such an endpoint wants it.
        options["allow_http"] = True
    return options


def upload_options() -> "ClientConfig":
    """The same for who sends files: until the first byte of an answer comes, no byte that is sent counts as a sign of
    life, and a part may take long to send."""
    return {**client_options(), "read_timeout": datetime.timedelta(seconds=PATIENCE.upload)}


def retry_config() -> "RetryConfig":
    """As obstore takes it."""
    seconds = datetime.timedelta
    return {
        "max_retries": PATIENCE.retries,
        "retry_timeout": seconds(seconds=PATIENCE.retry_seconds),
        "backoff": {
            "init_backoff": seconds(seconds=PATIENCE.first_wait),
            "max_backoff": seconds(seconds=50 * PATIENCE.first_wait),
            "base": 2,
        },
    }
