"""`gaussearch serve --ray`: works out what to run, shows it, has Ray Serve run it, and ends it again."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from index.distributed.ray_session import LOCAL, address_of, ray_module, ray_session
from index.errors import ClusterError
from service.cluster.options import ServeOptions, require_possible
from service.commands import print_table
from service.exposure import require_key_or_loopback
from service.keys import Keys
from service.logs import configure_logging

__all__ = ["run_cluster"]

logger = logging.getLogger("gaussearch.cluster")


def run_cluster(options: ServeOptions, address: str, *, plan_only: bool = False) -> None:
    """Serves on the Ray cluster at an address (index.distributed.ray_session) until SIGTERM or SIGINT; with `plan_only`
    only says how it would.

    A cluster that is started here ends with the command. In one that was joined, the service does, unless the options
    say `keep_serving`. Raises what Keys.load, require_key_or_loopback, IndexDirectory.manifest and plan_for raise,
    InvalidOptionError for what a cluster does not do, and ClusterError where Ray or Ray Serve fails.
    """
    options = _for_other_processes(options)
    require_possible(options)
    keys = Keys.load(options)
    require_key_or_loopback(options, keys)
    manifest = options.directory.manifest()
    joined = address_of(address) != LOCAL
    ray_module()
    configure_logging(options.log_level, options.log_format)
    with ray_session(address):
        from service.cluster.app import application, machines
        from service.cluster.plan import plan_for

        nodes = machines()
        plan = plan_for(manifest, nodes, options)
        print_table(f"{options.index}, generation {manifest.generation}", plan.rows(nodes))
        if plan_only:
            return
        with _told_to_end() as told:
            _serve(options, application(options, keys, plan), told, joined=joined)


def _for_other_processes(options: ServeOptions) -> ServeOptions:
    """The options as they are true in another folder."""
    paths: dict[str, str | Path] = {
        name: value.resolve()
        for name, value in ((name, getattr(options, name)) for name in type(options).model_fields)
        if isinstance(value, Path)
    }
    if options.directory.is_local:
        paths["index"] = options.directory.path.resolve()
    if options.model is not None and not options.model.startswith(("package:", "hub:")):
        paths["model"] = str(Path(options.model).resolve())
    return options.model_copy(update=paths)


def _serve(options: ServeOptions, application: Any, told: "_Told", *, joined: bool) -> None:
    """Serves until told to end; `joined` says that the cluster is not this command's own, which ends with it."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.context import _get_global_client
    from ray.serve.exceptions import RayServeException

    from service.cluster.app import LOGGING, NAME, listens_on_head

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    http = {
        "host": options.host,
        "port": options.port,
        "request_timeout_s": None,
        "ssl_certfile": _text(options.tls_certificate),
        "ssl_keyfile": _text(options.tls_key),
        "ssl_keyfile_password": options.tls_key_password and options.tls_key_password.get_secret_value(),
    }
    others = _get_global_client(raise_if_no_controller_running=False)
    if others is not None:
        # Its applications stay, and so does what it listens on: where that is has been checked of these options alone.
        _require_same(others.http_config, http)
        if NAME in serve.status().applications and not options.keep_serving:
            raise ClusterError(
                f"a service runs on this cluster already, as Ray Serve's application {NAME!r}: end it first (end the "
                "command that began it, or `serve delete`), or take its place for good (--keep-serving)"
            )
    try:
        if others is None:
            serve.start("HeadOnly" if listens_on_head(options) else "EveryNode", http, logging_config=LOGGING)
        serve.run(application, name=NAME, route_prefix="/")
        logger.info("serving on %s:%d", options.host, options.port)
        told.wait()
    except KeyboardInterrupt:
        # It may have answered already: this is the orderly end of a service, if a fast one.
        logger.info("told to end while it was being started")
    except (RayServeException, RayError, RuntimeError) as error:
        raise ClusterError(f"the service could not be started: {error}") from error
    finally:
        if not (joined and options.keep_serving):
            # What has not begun, or died with its cluster, is not to hide why.
            with contextlib.suppress(RayServeException, RayError):
                serve.delete(NAME)
            if joined and others is None:
                serve.shutdown()  # type: ignore[no-untyped-call]


def _require_same(found: Any, wanted: dict[str, Any]) -> None:
    different = [
        name for name in ("host", "port", "ssl_certfile", "ssl_keyfile") if getattr(found, name) != wanted[name]
    ]
    if different:
        raise ClusterError(
            f"Ray Serve runs on this cluster already, and listens on {found.host}:{found.port} with "
            f"{'a certificate' if found.ssl_certfile else 'no certificate'}: give --host, --port and the certificate "
            "as they are there, or end it (serve shutdown)"
        )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


class _Told:
    """Whether the command has been told to end."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._waits = False

    def note(self, *_: object) -> None:
        """What is done where a signal comes: an orderly end of a service that runs, and of anything else an end at
        once."""
        if self._event.is_set() or not self._waits:
            raise KeyboardInterrupt
        self._event.set()

    def wait(self) -> None:
        """Returns once it has been told."""
        self._waits = True
        self._event.wait()


@contextlib.contextmanager
def _told_to_end() -> Iterator[_Told]:
    """What SIGTERM and SIGINT tell."""
    told = _Told()
    before = {each: signal.signal(each, told.note) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
