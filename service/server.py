"""Runs the application under uvicorn: checks before the start, one process or several, an orderly end."""

import contextlib
import gc
import logging
import os
import signal
import socket
import tempfile
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from index.errors import GaussearchError
from index.memory import require_memory
from index.vectors import resolve_device
from service.app import create_app
from service.connections import Connection
from service.exposure import require_key_or_loopback
from service.keys import Keys
from service.logs import configure_logging
from service.settings import ENV_PREFIX, ServiceSettings
from service.tls import context_factory

__all__ = ["run_server", "uvicorn_options", "worker_app"]

logger = logging.getLogger("gaussearch.server")

WORKER_START_SECONDS = 120

GC_THRESHOLD = 20_000
"""New objects after which the garbage collector looks through them: a millisecond's work."""

FAILURE = "failure.txt"
"""What a worker that cannot serve the index leaves for the process that started it."""


def run_server(settings: ServiceSettings) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is under way.

    Raises, before listening, what Keys.load, require_key_or_loopback and context_factory raise, the errors of
    IndexDirectory.manifest where there is no index to serve, DeviceUnavailableError, InsufficientMemoryError, and
    OSError for an address in use; and what loading the index raises if that fails later.
    """
    keys = Keys.load(settings)
    require_key_or_loopback(settings, keys)
    options = uvicorn_options(settings)
    directory = settings.directory
    require_memory(directory.manifest(), directory, resolve_device(settings.device), copies=settings.workers)
    _require_free(settings.host, settings.port)
    _prepare_process(settings)
    if settings.workers == 1:
        _run_here(settings, keys, options)
    else:
        _run_workers(settings, options)


def _require_free(host: str, port: int) -> None:
    # uvicorn would say so only after the application has started, in the middle of the log.
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise OSError(f"{host}:{port} cannot be listened on: {error.strerror}") from error


def _run_here(settings: ServiceSettings, keys: Keys, options: dict[str, Any]) -> None:
    failures: list[Exception] = []

    def give_up(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    server = _Server(uvicorn.Config(create_app(settings, give_up, keys), **options))
    # It ends in order on SIGTERM and SIGINT, and then raises what it was sent.
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if failures:
        raise _unservable(failures[0])


class _Server(uvicorn.Server):
    """Ends in order when it is told to, and at once when it is told again.

    uvicorn heeds only a second SIGINT, and then still waits for threads: for a search, for an index that is being
    loaded. Nothing here has to be put away: whatever is written to an index survives the end of its process.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            logger.warning("told to end again: %d requests go without an answer", len(self.server_state.tasks))
            os._exit(128 + sig)
        super().handle_exit(sig, frame)


def _run_workers(settings: ServiceSettings, options: dict[str, Any]) -> None:
    # Workers are new processes that know only the environment.
    for name in ServiceSettings.model_fields:
        value = getattr(settings, name)
        if value is not None:
            text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            os.environ[f"{ENV_PREFIX}{name.upper()}"] = text
    with tempfile.TemporaryDirectory(prefix="gaussearch-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.run("service.server:worker_app", factory=True, workers=settings.workers, **options)
        failure = Path(folder, FAILURE)
        if failure.exists():
            raise GaussearchError(failure.read_text(encoding="utf-8"))


def worker_app() -> FastAPI:
    """The application of one worker process, from the environment."""
    settings = ServiceSettings()  # type: ignore[call-arg]
    _prepare_process(settings)

    def give_up(error: Exception) -> None:
        # A worker that ends is started anew, for ever; so it is the parent that has to end, and to say why.
        Path(os.environ["PROMETHEUS_MULTIPROC_DIR"], FAILURE).write_text(str(_unservable(error)), encoding="utf-8")
        os.kill(os.getppid(), signal.SIGTERM)

    return create_app(settings, give_up)


def _unservable(error: Exception) -> GaussearchError | OSError:
    """An error that the command shows in one line."""
    if isinstance(error, GaussearchError | OSError):
        return error
    return GaussearchError(f"the index cannot be served: {error!r}")


def _prepare_process(settings: ServiceSettings) -> None:
    configure_logging(settings.log_level, settings.log_format)
    # torch only encodes queries here, a few numbers at a time; the cores are for FAISS and the event loop.
    torch.set_num_threads(1)
    # What has been imported stays: looking through 200,000 such objects again takes 60 ms, during which nobody is
    # answered.
    gc.collect()
    gc.freeze()
    # And what comes is looked through less often than every 700 objects, which a few dozen requests at a time are: that
    # took a tenth of the event loop's time.
    gc.set_threshold(GC_THRESHOLD)


def uvicorn_options(settings: ServiceSettings) -> dict[str, Any]:
    """How uvicorn is to serve. Raises what context_factory raises."""
    return {
        "host": settings.host,
        "port": settings.port,
        "loop": "auto",
        "http": partial(Connection, settings),
        "ssl_context_factory": context_factory(settings),
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        # Nothing here asks who the client is.
        "proxy_headers": False,
        "timeout_graceful_shutdown": settings.shutdown_seconds,
        # A worker answers only once it has imported torch and FAISS; uvicorn's 5 seconds would have it killed, and the
        # next one too, on any machine that takes longer.
        "timeout_worker_healthcheck": WORKER_START_SECONDS,
    }
