"""The application of Ray Serve, for whoever runs it: `gaussearch serve --ray`, or a configuration of Ray Serve that
names `service.cluster.app:build`, as KubeRay's RayService does.
"""

from typing import Any

import ray
from pydantic import ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.context import _get_global_client

from index.errors import InvalidOptionError
from service.cluster.deployments import Ingress, ShardReplica
from service.cluster.options import ServeOptions, require_possible
from service.cluster.plan import ClusterPlan, Node, plan_for
from service.exposure import is_loopback, require_key_or_loopback
from service.keys import Keys

__all__ = ["LOGGING", "NAME", "application", "build", "listens_on_head", "machines"]

NAME = "gaussearch"
"""What Ray Serve calls the application."""
RETRY_SECONDS = 1.0
HEAD, HEAD_SHARE = "node:__internal_head__", 0.001
"""What Ray calls being the head, of which there is one, and how little of it is taken."""
LOGGING = {"enable_access_log": False, "log_level": "WARNING"}
"""The service's own log has a line for each request; another of every process that one goes through would cost more
than it tells."""
HEALTH = {"health_check_period_s": 5.0, "health_check_timeout_s": 15.0}
"""How often Ray Serve asks a process whether it is well, and how long it waits for that: then it starts another."""


def build(arguments: dict[str, Any]) -> Application:
    """The application of these settings, by the names that service.settings and service.cluster.options give them; what
    is not among them comes from GAUSSEARCH_* variables. The number of shards and what each takes is worked out here
    unless it is given.

    `host` and `port` are those that Ray Serve is configured to listen on, and where it runs, `host` is what it listens
    on whatever is given: where others could reach it, there has to be a search key. Raises InvalidOptionError for a
    setting that is none, and what require_possible, Keys.load, require_key_or_loopback and plan_for raise.
    """
    unknown = sorted(set(arguments) - set(ServeOptions.model_fields))
    if unknown:
        raise InvalidOptionError(f"there is no setting {unknown[0]!r}; README.md lists those that there are")
    try:
        # Numbers and paths may come as text, as they do from variables.
        options = ServeOptions(**arguments)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise InvalidOptionError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    require_possible(options)
    options = _where_it_listens(options)
    keys = Keys.load(options)
    require_key_or_loopback(options, keys)
    return application(options, keys, plan_for(options.directory.manifest(), machines(), options))


def _where_it_listens(options: ServeOptions) -> ServeOptions:
    """The options with the address that Ray Serve listens on, where it does already: whether others reach it is not for
    who writes a configuration to get wrong in one of two places."""
    running = _get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    if running is None or running.http_config.host is None:
        return options
    return options.model_copy(update={"host": running.http_config.host})


def machines() -> list[Node]:
    """The machines of the cluster that this process is connected to."""
    return [
        Node(float(each.get("CPU", 0)), float(each.get("GPU", 0)), int(each.get("memory", 0)))
        for each in (node["Resources"] for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]
        if each.get("CPU", 0)
    ]


def listens_on_head(options: ServeOptions) -> bool:
    """Whether requests are taken by the head alone."""
    return options.proxies == "head" or (options.proxies == "auto" and is_loopback(options.host))


def _place_of_ingress(options: ServeOptions) -> dict[str, Any]:
    """What Ray is to set aside for an ingress. Where all requests come in at the head, it is there, and the death of
    any other machine loses no request. It asks for no cores then: there may be none left, and nothing would start."""
    if listens_on_head(options):
        return {"num_cpus": 0, "resources": {HEAD: HEAD_SHARE}}
    return {"num_cpus": options.ingress_cpus}


def _shards(options: ServeOptions, plan: ClusterPlan) -> list[Application]:
    """The deployment of each shard."""
    scaled: dict[str, Any] = {"num_replicas": plan.replicas}
    if plan.max_replicas > plan.replicas:
        scaled = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=plan.replicas,
                max_replicas=plan.max_replicas,
                initial_replicas=plan.replicas,
                target_ongoing_requests=options.target_requests,
            )
        }
    # They see to no requests of clients.
    keyless = options.model_copy(update=dict.fromkeys(("api_key", "admin_key", "tls_key_password")))
    return [
        serve.deployment(ShardReplica)  # type: ignore[attr-defined]
        .options(
            name=f"shard-{number}",
            ray_actor_options={"num_cpus": plan.cpus, "num_gpus": plan.gpus, "memory": plan.memory},
            max_ongoing_requests=options.max_ongoing,
            max_queued_requests=options.max_queued,
            graceful_shutdown_timeout_s=options.shutdown_seconds,
            logging_config=LOGGING,
            **scaled,
            **HEALTH,
        )
        .bind(keyless, number, len(plan.shards), options.threads or plan.threads)
        for number in range(len(plan.shards))
    ]


def application(options: ServeOptions, keys: Keys, plan: ClusterPlan) -> Application:
    """What Ray Serve is to run."""
    ingress = serve.deployment(Ingress).options(  # type: ignore[attr-defined]
        name="ingress",
        num_replicas=options.ingress_replicas,
        ray_actor_options=_place_of_ingress(options),
        max_ongoing_requests=options.max_connections,
        max_queued_requests=options.max_connections,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_SECONDS),
        graceful_shutdown_timeout_s=options.shutdown_seconds,
        logging_config=LOGGING,
        **HEALTH,
    )
    bound: Application = ingress.bind(options, keys, *_shards(options, plan))
    return bound
