"""Runs the application under uvicorn: checks before the start, one process or several, an orderly end."""

import contextlib
import os
import tempfile
from typing import Any

import uvicorn
from fastapi import FastAPI

from index.memory import require_memory
from index.storage import IndexDirectory
from index.vectors import resolve_device
from service.app import create_app
from service.logs import configure_logging
from service.settings import ENV_PREFIX, ServiceSettings

__all__ = ["run_server"]


def run_server(settings: ServiceSettings) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is under way.

    Raises, before listening, the errors of IndexDirectory.manifest where there is no index to serve,
    DeviceUnavailableError and InsufficientMemoryError; and what loading the index raises if that fails later.
    """
    directory = IndexDirectory(settings.index)
    require_memory(directory.manifest(), directory.path, resolve_device(settings.device))
    configure_logging(settings.log_level, settings.log_format)
    if settings.workers == 1:
        _run_here(settings)
    else:
        _run_workers(settings)


def _run_here(settings: ServiceSettings) -> None:
    failures: list[Exception] = []

    def give_up(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    server = uvicorn.Server(uvicorn.Config(create_app(settings, give_up), **_uvicorn_options(settings)))
    # uvicorn ends in order on SIGTERM and SIGINT, and then raises what it was sent.
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if failures:
        raise failures[0]


def _run_workers(settings: ServiceSettings) -> None:
    # Workers are new processes that know only the environment.
    for name in ServiceSettings.model_fields:
        value = getattr(settings, name)
        if value is not None:
            text = value.get_secret_value() if name == "api_key" else str(value)
            os.environ[f"{ENV_PREFIX}{name.upper()}"] = text
    with tempfile.TemporaryDirectory(prefix="gaussearch-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.run(
                "service.server:worker_app", factory=True, workers=settings.workers, **_uvicorn_options(settings)
            )


def worker_app() -> FastAPI:
    """The application of one worker process, from the environment."""
    settings = ServiceSettings()  # type: ignore[call-arg]
    configure_logging(settings.log_level, settings.log_format)
    return create_app(settings)


def _uvicorn_options(settings: ServiceSettings) -> dict[str, Any]:
    return {
        "host": settings.host,
        "port": settings.port,
        "loop": "auto",
        "http": "httptools",
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": settings.shutdown_seconds,
    }
