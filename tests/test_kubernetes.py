"""The manifests of deploy/kubernetes: valid by the published schemas, locked up, and about settings that there are.

The resources of KubeRay have no schema here: their pod templates are held to that of a pod, and what they serve to
Ray's own.
"""

import importlib
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import kubernetes_validate
import pytest
import yaml
from packaging.utils import canonicalize_name

from service.settings import ENV_PREFIX, ServiceSettings
from tests.readme_commands import ROOT
from tests.test_container_files import STAGES, only, pins

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.parent.name for path in FOLDER.glob("*/kustomization.yaml") if path.parent.name != "base")
VERSION = "1.34"
"""Of Kubernetes, whose schemas it is held to."""
CUSTOM = {"RayService": "rayClusterConfig", "RayJob": "rayClusterSpec"}
"""Resources of KubeRay's, and where each has its cluster."""
MADE_ELSEWHERE = {
    "ConfigMap": {"kube-root-ca.crt"},
    "Secret": {"gaussearch-storage", "gaussearch-keys", "gaussearch-redis"},
}
"""What is there in every namespace, and what README.md says how to make."""

needs_kustomize = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl to render with")


@cache
def rendered(overlay: str) -> tuple[dict[str, Any], ...]:
    """What is applied of an overlay."""
    done = subprocess.run(["kubectl", "kustomize", str(FOLDER / overlay)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


@cache
def written() -> tuple[tuple[Path, dict[str, Any]], ...]:
    """The resources of all files, as they are written."""
    paths = sorted(FOLDER.glob("*/*.yaml"))
    found = [(path, each) for path in paths for each in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
    return tuple((path, each) for path, each in found if {"apiVersion", "kind", "metadata"} <= set(each))


class Pod(NamedTuple):
    """A pod template: the file and resource that it is of, and what of a cluster, if anything."""

    file: str
    kind: str
    role: str
    template: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.template["spec"]
        return spec

    @property
    def container(self) -> dict[str, Any]:
        (container,) = self.spec["containers"]
        only_one: dict[str, Any] = container
        return only_one

    @property
    def mounts(self) -> dict[str, str]:
        """The volume at each path."""
        return {mount["mountPath"]: mount["name"] for mount in self.container["volumeMounts"]}

    @property
    def volumes(self) -> dict[str, dict[str, Any]]:
        return {volume["name"]: volume for volume in self.spec["volumes"]}


def pods_of(file: str, resource: dict[str, Any]) -> Iterator[Pod]:
    kind = resource["kind"]
    if kind in ("Deployment", "Job"):
        yield Pod(file, kind, "", resource["spec"]["template"])
    elif kind in CUSTOM:
        cluster = resource["spec"].get(CUSTOM[kind], {})
        if "headGroupSpec" in cluster:
            yield Pod(file, kind, "head", cluster["headGroupSpec"]["template"])
        for group in cluster.get("workerGroupSpecs", []):
            yield Pod(file, kind, "worker", group["template"])


PODS = [pod for path, each in written() for pod in pods_of(path.parent.name, each)]
every_pod = pytest.mark.parametrize("pod", PODS, ids=lambda pod: f"{pod.file}-{pod.kind}{pod.role and '-'}{pod.role}")
serving_pod = pytest.mark.parametrize(
    "pod", [pod for pod in PODS if pod.kind != "Job"], ids=lambda pod: f"{pod.file}-{pod.role}"
)


def resource(kind: str, folder: str) -> dict[str, Any]:
    (found,) = [each for path, each in written() if each["kind"] == kind and path.parent.name == folder]
    return found


def settings() -> dict[str, str]:
    """The variables of settings.env."""
    lines = (FOLDER / "base" / "settings.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi)?", text).groups()  # type: ignore[union-attr]
    return int(number) * {None: 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[unit]


def validate(resource: dict[str, Any]) -> None:
    kubernetes_validate.validate(resource, VERSION, strict=True)


def as_pod(pod: Pod) -> dict[str, Any]:
    metadata = {"name": "a-pod", **pod.template["metadata"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod.spec}


def test_there_is_what_the_issue_of_every_day_takes() -> None:
    assert OVERLAYS == ["build", "build-ray", "ray", "ray-redis", "single-node"]
    assert [(pod.file, pod.kind, pod.role) for pod in PODS] == [
        ("build", "Job", ""),
        ("build-ray", "RayJob", "head"),
        ("build-ray", "RayJob", "worker"),
        ("ray", "RayService", "head"),
        ("ray", "RayService", "worker"),
        ("single-node", "Deployment", ""),
    ]


@pytest.mark.parametrize(
    "each", [each for _, each in written() if each["kind"] not in CUSTOM], ids=lambda each: each["metadata"]["name"]
)
def test_every_file_is_valid_as_it_is_written(each: dict[str, Any]) -> None:
    validate(each)


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_applied_is_valid_and_of_one_namespace(overlay: str) -> None:
    resources = rendered(overlay)
    assert {each["kind"] for each in resources} >= {"Namespace", "ConfigMap", "ServiceAccount", "NetworkPolicy"}
    for each in resources:
        if each["kind"] not in CUSTOM:
            validate(each)
        if each["kind"] != "Namespace":
            assert each["metadata"]["namespace"] == "gaussearch"
        for pod in pods_of(overlay, each):
            validate(as_pod(pod))
            assert pod.container["image"].startswith("registry.example/gaussearch")
            assert not pod.container["image"].endswith(":latest")


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_pods_refer_to_is_applied_with_them_or_made_by_hand(overlay: str) -> None:
    resources = rendered(overlay)
    there = {kind: set(MADE_ELSEWHERE.get(kind, ())) for kind in ("ConfigMap", "Secret", "ServiceAccount")}
    for each in resources:
        there.setdefault(each["kind"], set()).add(each["metadata"]["name"])
    (configured,) = {name for name in there["ConfigMap"] if name.startswith("gaussearch-settings")}
    assert configured != "gaussearch-settings", "its name has the digest of what it holds"
    for each in resources:
        for pod in pods_of(overlay, each):
            assert pod.spec["serviceAccountName"] in there["ServiceAccount"]
            for source in pod.container["envFrom"]:
                assert (
                    source.get("configMapRef", source.get("secretRef"))["name"] in there["ConfigMap"] | there["Secret"]
                )
            assert any(source.get("configMapRef", {}).get("name") == configured for source in pod.container["envFrom"])
            secrets = [volume["secret"]["secretName"] for volume in pod.spec["volumes"] if "secret" in volume]
            assert set(secrets) <= there["Secret"]


def test_a_mistake_is_found() -> None:
    pod = as_pod(PODS[0])
    broken = {**pod, "spec": {**pod["spec"], "readOnlyRoot": True}}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(broken)


@every_pod
def test_a_pod_may_do_nothing_that_it_need_not(pod: Pod) -> None:
    validate(as_pod(pod))
    spec, container = pod.spec, pod.container
    uid, _, _ = only("cpu", "USER").partition(":")
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == int(uid)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume]


@every_pod
def test_a_pod_has_bounds(pod: Pod) -> None:
    resources = pod.container["resources"]
    for name in ("requests", "limits"):
        assert set(resources[name]) == {"cpu", "memory", "ephemeral-storage"}
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    temporary = {name: volume["emptyDir"] for name, volume in pod.volumes.items() if "emptyDir" in volume}
    assert all("sizeLimit" in volume for volume in temporary.values())
    on_disk = [size(volume["sizeLimit"]) for volume in temporary.values() if volume.get("medium") != "Memory"]
    assert sum(on_disk) <= size(resources["limits"]["ephemeral-storage"])
    in_memory = [size(volume["sizeLimit"]) for volume in temporary.values() if volume.get("medium") == "Memory"]
    assert sum(in_memory) <= size(resources["limits"]["memory"]) / 2


@every_pod
def test_a_pod_can_write_where_it_has_to(pod: Pod) -> None:
    assert set(pod.mounts.values()) <= set(pod.volumes)
    for path in ("/tmp", settings()["GAUSSEARCH_CACHE"]):  # noqa: S108
        assert "emptyDir" in pod.volumes[pod.mounts[path]]
    if pod.role:
        assert pod.volumes[pod.mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"  # noqa: S108
        assert pod.mounts["/tmp/ray"] == "ray-logs", "the name by which KubeRay shares it"  # noqa: S108
        memory = pod.volumes["shared-mem"]["emptyDir"]["sizeLimit"]
        cluster = resource(pod.kind, pod.file)["spec"][CUSTOM[pod.kind]]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert int(group["rayStartParams"]["object-store-memory"]) <= size(memory)
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@serving_pod
def test_the_cache_is_smaller_than_its_volume(pod: Pod) -> None:
    if pod.role == "head":
        return  # which holds no segment
    volume = pod.volumes[pod.mounts[settings()["GAUSSEARCH_CACHE"]]]["emptyDir"]["sizeLimit"]
    assert int(settings()["GAUSSEARCH_CACHE_BYTES"]) < size(volume)


@serving_pod
def test_a_pod_says_when_it_lives_and_when_it_is_ready(pod: Pod) -> None:
    probes = {name: pod.container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    if pod.kind == "Deployment":
        assert {name: probe["path"] for name, probe in probes.items()} == {
            "startup": "/livez",
            "readiness": "/readyz",
            "liveness": "/livez",
        }
        assert {probe["port"] for probe in probes.values()} == {"http"}
        (port,) = pod.container["ports"]
        environment = dict(pair.partition("=")[::2] for pair in only("cpu", "ENV").split() if "=" in pair)
        assert (port["name"], str(port["containerPort"])) == ("http", environment["GAUSSEARCH_PORT"])
        return
    assert probes["startup"] == probes["liveness"] == {"path": "/api/healthz", "port": 52365}
    if (pod.kind, pod.role) == ("RayService", "worker"):
        assert probes["readiness"] == {"path": "/-/healthz", "port": "serve"}
        assert pod.container["ports"] == [{"name": "serve", "containerPort": 8000}]
    else:
        assert probes["readiness"] == {"path": "/api/healthz", "port": 52365}


@serving_pod
def test_a_pod_that_ends_has_time_to_finish(pod: Pod) -> None:
    pause = pod.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    finishing = int(
        settings().get("GAUSSEARCH_SHUTDOWN_SECONDS", ServiceSettings.model_fields["shutdown_seconds"].default)
    )
    if pod.kind == "Deployment" or (pod.kind, pod.role) == ("RayService", "worker"):
        assert pause > 0
        assert pod.spec["terminationGracePeriodSeconds"] >= pause + finishing + 5
        spread = pod.spec["topologySpreadConstraints"]
        assert [each["topologyKey"] for each in spread] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
        for each in spread:
            assert each["labelSelector"]["matchLabels"].items() <= pod.template["metadata"]["labels"].items()


def variables(pod: Pod) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in pod.container.get("env", [])}


@every_pod
def test_every_setting_is_one_that_there_is(pod: Pod) -> None:
    known = {f"{ENV_PREFIX}{name.upper()}" for name in ServiceSettings.model_fields}
    named = {name for name in (*settings(), *variables(pod)) if name.startswith(ENV_PREFIX)}
    assert named <= known
    values = {
        name.removeprefix(ENV_PREFIX).lower(): value
        for name, value in settings().items()
        if name.removeprefix(ENV_PREFIX).lower() in ServiceSettings.model_fields
    }
    ServiceSettings.model_validate(values)
    for each in variables(pod).values():
        if "valueFrom" in each:
            assert each["valueFrom"]["resourceFieldRef"] == {"resource": "limits.cpu"}


def test_no_secret_stands_in_a_file() -> None:
    assert not [path for path, each in written() if each["kind"] == "Secret"]
    secret = re.compile("KEY|SECRET|PASSWORD|TOKEN")
    assert not [name for name in settings() if secret.search(name)]
    for pod in PODS:
        with_value = {name for name, each in variables(pod).items() if "value" in each and secret.search(name)}
        assert with_value <= {"GAUSSEARCH_API_KEY_FILE"}


@serving_pod
def test_whoever_answers_has_search_keys(pod: Pod) -> None:
    if pod.kind == "RayJob":
        return
    path = variables(pod)["GAUSSEARCH_API_KEY_FILE"]["value"]
    volume = pod.volumes[pod.mounts[str(Path(path).parent)]]
    assert volume["secret"]["secretName"] == "gaussearch-keys"
    assert volume["secret"]["defaultMode"] == 0o440
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"create secret generic gaussearch-keys --from-file {Path(path).name}=" in readme.replace(" \\\n ", "")


@every_pod
def test_every_pod_is_reached_by_a_policy_and_may_reach_storage(pod: Pod) -> None:
    labels = pod.template["metadata"]["labels"]
    deny, storage = (
        each for path, each in written() if path.name == "network-policy.yaml" and path.parent.name == "base"
    )
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert storage["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    if pod.kind != "Job":
        selectors = [
            each["spec"]["podSelector"]
            for path, each in written()
            if each["kind"] == "NetworkPolicy" and path.parent.name == pod.file
        ]
        assert any(selects(selector, labels) for selector in selectors)


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    by_value = selector.get("matchLabels", {}).items() <= labels.items()
    return by_value and all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))


@pytest.mark.parametrize(("kind", "folder"), [("RayService", "ray"), ("RayJob", "build-ray")])
def test_rays_ports_are_open_among_its_pods_and_no_others(kind: str, folder: str) -> None:
    cluster = resource(kind, folder)["spec"][CUSTOM[kind]]
    policy, *_ = [each for path, each in written() if each["kind"] == "NetworkPolicy" and path.parent.name == folder]
    (rule,), (egress,) = policy["spec"]["ingress"], policy["spec"]["egress"]
    assert rule["from"] == [{"podSelector": policy["spec"]["podSelector"]}]
    assert rule["ports"] == egress["ports"]
    ranges = [range(each["port"], each.get("endPort", each["port"]) + 1) for each in rule["ports"]]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        ports = {int(value) for name, value in group["rayStartParams"].items() if name.endswith("-port")}
        assert len(ports) == 7
        assert all(any(port in its for its in ranges) for port in (*ports, 6379, 8265, 52365))
        assert (
            range(int(group["rayStartParams"]["min-worker-port"]), int(group["rayStartParams"]["max-worker-port"]) + 1)
            in ranges
        )


def test_disruptions_leave_enough() -> None:
    deployment, budget = resource("Deployment", "single-node"), resource("PodDisruptionBudget", "single-node")
    assert 0 < budget["spec"]["minAvailable"] < deployment["spec"]["replicas"]
    assert budget["spec"]["selector"] == deployment["spec"]["selector"]
    budget = resource("PodDisruptionBudget", "ray")
    (group,) = resource("RayService", "ray")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert budget["spec"]["minAvailable"] == group["minReplicas"] - 1
    assert budget["spec"]["selector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()


def test_the_service_leads_to_the_deployment() -> None:
    service, deployment = resource("Service", "single-node"), resource("Deployment", "single-node")
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert {port["targetPort"] for port in service["spec"]["ports"]} == {"http"}


def served() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(resource("RayService", "ray")["spec"]["serveConfigV2"])
    return config


def test_what_ray_serves_is_valid_by_rays_own_schema() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="Ray is not installed")
    config = served()
    # Ray leaves fields out that it does not know.
    parsed = schema.ServeDeploySchema.model_validate(config)
    assert set(config) <= set(schema.ServeDeploySchema.model_fields)
    (application,) = parsed.applications
    assert set(config["applications"][0]) <= set(schema.ServeApplicationSchema.model_fields)
    assert application.route_prefix == "/"
    with pytest.raises(ValueError, match="import_path"):
        schema.ServeDeploySchema.model_validate({"applications": [{"name": "gaussearch", "import_path": "nowhere"}]})


def test_what_ray_serves_finds_room_on_the_workers() -> None:
    config = served()
    arguments = config["applications"][0]["args"]
    assert arguments["index"] == settings()["GAUSSEARCH_INDEX"]
    assert {name: arguments[name] for name in ("host", "port")} == {
        name: config["http_options"][name] for name in ("host", "port")
    }
    (group,) = resource("RayService", "ray")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert arguments["shards"] * arguments["replicas"] == group["replicas"] == group["minReplicas"]
    assert arguments["shards"] * arguments["max_replicas"] == group["maxReplicas"]
    assert arguments["ingress_replicas"] == group["replicas"]
    limits = container["resources"]["limits"]
    # One of each on a worker, and not two of one shard.
    assert arguments["replica_cpus"] + arguments["ingress_cpus"] == int(limits["cpu"]) < 2 * arguments["replica_cpus"]
    assert arguments["replica_memory"] < size(limits["memory"])
    assert config["http_options"]["port"] == container["ports"][0]["containerPort"]
    assert config["http_options"]["request_timeout_s"] >= ServiceSettings.model_fields["max_timeout_ms"].default / 1000


@pytest.mark.skipif(
    importlib.util.find_spec("service.cluster") is None, reason="there is nothing to serve on a cluster"
)
def test_what_ray_serves_is_built_by_what_is_named_of_settings_that_there_are() -> None:
    application = served()["applications"][0]
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    options = importlib.import_module("service.cluster.options").ServeOptions
    assert set(application["args"]) <= set(options.model_fields)
    options(**application["args"])


@pytest.mark.parametrize(("kind", "folder"), [("RayService", "ray"), ("RayJob", "build-ray")])
def test_the_cluster_is_of_the_images_ray_and_takes_a_token(kind: str, folder: str) -> None:
    cluster = resource(kind, folder)["spec"][CUSTOM[kind]]
    assert cluster["rayVersion"] == str(pins()[canonicalize_name("ray")])
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_of_the_heads_containers_the_autoscaler_alone_may_ask_the_cluster() -> None:
    cluster = resource("RayService", "ray")["spec"]["rayClusterConfig"]
    options = cluster["autoscalerOptions"]
    (head,) = [pod for pod in PODS if (pod.kind, pod.role) == ("RayService", "head")]
    assert options["securityContext"] == head.container["securityContext"]
    (token,) = [name for name, volume in head.volumes.items() if "projected" in volume]
    assert token not in head.mounts.values()
    mounts = {mount["mountPath"]: mount["name"] for mount in options["volumeMounts"]}
    assert mounts["/var/run/secrets/kubernetes.io/serviceaccount"] == token
    assert set(mounts.values()) <= set(head.volumes)
    assert set(options["resources"]) == {"requests", "limits"}


def test_the_image_of_a_cluster_is_one_that_the_dockerfile_makes() -> None:
    assert any("EXTRAS" in rest for name, rest in STAGES["requirements"] if name == "ARG")
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "--build-arg EXTRAS=ray" in readme
    assert {pod.container["image"] for pod in PODS if pod.role} == {"gaussearch-ray"}
    assert {pod.container["image"] for pod in PODS if not pod.role} == {"gaussearch"}


def test_the_readme_names_overlays_and_secrets_that_there_are() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    applied = set(
        re.findall(r"kubectl (?:apply|delete|kustomize|diff|replace)[^\n]*? -k deploy/kubernetes/([\w-]+)", readme)
    )
    assert applied == set(OVERLAYS)
    assert set(re.findall(r"create secret generic ([\w-]+)", readme)) == MADE_ELSEWHERE["Secret"]
