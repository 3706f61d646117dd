"""The container's files agree with the package and with each other; .ci/run builds and runs the image itself."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from service.exposure import ExposedError, require_key_or_loopback
from service.keys import Keys
from service.settings import ServiceSettings
from service.tls import server_context

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ["cpu", "gpu"]
CERTIFICATE = ROOT / "tests" / "tls" / "certificate.pem"


def dockerfile_stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, by the stage's name, with continued lines joined."""
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    stages: dict[str, list[tuple[str, str]]] = {"": []}
    name = ""
    for line in text.replace("\\\n", "").splitlines():
        if not line.strip():
            continue
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            name = rest.split(" AS ")[1]
            stages[name] = []
        stages[name].append((instruction, rest.strip()))
    return stages


STAGES = dockerfile_stages()


def only(stage: str, instruction: str) -> str:
    (found,) = [rest for name, rest in STAGES[stage] if name == instruction]
    return found


def healthcheck_program(stage: str) -> str:
    command: list[str] = json.loads(only(stage, "HEALTHCHECK").partition(" CMD ")[2])
    assert command[:2] == ["python", "-c"]
    return command[2]


def compose_file() -> dict[str, Any]:
    compose: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return compose


def compose_service(name: str) -> dict[str, Any]:
    service: dict[str, Any] = compose_file()["services"][name]
    return service


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def test_the_default_target_is_the_one_without_a_gpu() -> None:
    assert list(STAGES)[-1] == "cpu"


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_runs_as_a_fixed_user_who_is_not_root(target: str) -> None:
    user, _, group = only(target, "USER").partition(":")
    assert user == group
    assert int(user) > 0
    assert f"--uid {user} " in " ".join(rest for name, rest in STAGES[target] if name == "RUN")


@pytest.mark.parametrize("target", TARGETS)
def test_dependencies_are_installed_before_any_code_is_copied(target: str) -> None:
    steps = STAGES[target]
    install = next(row for row, (name, rest) in enumerate(steps) if name == "RUN" and "--requirement" in rest)
    copied = [rest for name, rest in steps[:install] if name == "COPY"]
    assert copied == [
        "constraints.txt /opt/gaussearch/",
        f"--from=requirements /{target}.txt /opt/gaussearch/requirements.txt",
    ]


def test_the_targets_differ_in_what_they_must_and_in_nothing_else() -> None:
    def normalised(target: str) -> list[tuple[str, str]]:
        nvidia = re.compile(r"\s*NVIDIA_\w+=\S+")
        steps = [(name, nvidia.sub("", rest).strip()) for name, rest in STAGES[target] if name != "FROM"]
        return [(name, re.sub(r"\s+", " ", rest).replace(f"/{target}.txt", "/EXTRA.txt")) for name, rest in steps]

    assert normalised("gpu") == normalised("cpu")


def test_the_builder_receives_every_file_that_is_copied_and_nothing_large() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert patterns[0] == "*"
    kept = {pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")}
    copies = (shlex.split(rest) for steps in STAGES.values() for name, rest in steps if name == "COPY")
    sources = {source for copy in copies if not copy[0].startswith("--from") for source in copy[:-1]}
    assert sources == kept
    for source in sources:
        assert (ROOT / source).exists(), source
    assert not any(fnmatch(name, pattern) for name in (".venv", "demo-index", ".git") for pattern in kept)


class Alive(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/livez" else 404)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def alive(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a service that lives; over HTTPS where the test's parameter is a certificate."""
    certificate: Path | None = getattr(request, "param", None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Alive) as server:
        if certificate is not None:
            context = server_context(certificate, certificate.with_name("key.pem"))
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def run_healthcheck(program: str, port: int, **settings: str) -> int:
    # A proxy that nothing listens on: the check must not ask it.
    proxy = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    environment = {"GAUSSEARCH_PORT": str(port), **proxy, **settings}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False).returncode


@pytest.mark.parametrize("target", TARGETS)
def test_the_health_check_tells_a_living_service_from_a_dead_one(target: str, alive: int) -> None:
    program = healthcheck_program(target)
    assert run_healthcheck(program, alive) == 0
    assert run_healthcheck(program.replace("/livez", "/elsewhere"), alive) != 0
    assert run_healthcheck(program, 9) != 0


@pytest.mark.parametrize("alive", [CERTIFICATE], indirect=True)
def test_the_health_check_speaks_tls_where_the_service_does(alive: int) -> None:
    program = healthcheck_program("cpu")
    assert run_healthcheck(program, alive, GAUSSEARCH_TLS_CERTIFICATE=str(CERTIFICATE)) == 0
    assert run_healthcheck(program, alive) != 0


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_serves_nobody_without_a_key_unless_it_is_told_to(target: str) -> None:
    environment = dict(pair.partition("=")[::2] for pair in only(target, "ENV").split() if "=" in pair)
    settings = {name.removeprefix("GAUSSEARCH_").lower(): value for name, value in environment.items()}
    assert not {"api_key", "admin_key", "allow_anonymous"} & set(settings)
    own = {name: value for name, value in settings.items() if name in ServiceSettings.model_fields}
    assert own["host"] == "0.0.0.0"  # noqa: S104
    with pytest.raises(ExposedError):
        require_key_or_loopback(ServiceSettings.model_validate(own), Keys())


@pytest.mark.parametrize("name", ["search", "search-gpu"])
def test_compose_serves_without_a_key_because_it_publishes_to_this_machine(name: str) -> None:
    service = compose_service(name)
    assert service["environment"] == ["GAUSSEARCH_API_KEY", "GAUSSEARCH_ALLOW_ANONYMOUS=true"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_compose_publishes_to_this_machine_alone() -> None:
    published = [port for service in compose_file()["services"].values() for port in service.get("ports", [])]
    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") and port.endswith(":8080") for port in published)


def require_locked_up(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["tmpfs"] == ["/tmp"]  # noqa: S108


@pytest.mark.parametrize("name", ["build", "search", "search-gpu", "build-s3", "search-s3"])
def test_compose_gives_each_service_no_more_than_it_needs(name: str) -> None:
    service = compose_service(name)
    require_locked_up(service)
    target = service["build"]["target"]
    assert target in STAGES
    assert service["image"] == f"gaussearch:{target}"


@pytest.mark.parametrize("name", ["search", "search-gpu"])
def test_compose_serves_what_the_build_job_made(name: str) -> None:
    service = compose_service(name)
    assert service["depends_on"] == {"build": {"condition": "service_completed_successfully"}}
    assert service["volumes"] == ["index:/index:ro"]
    assert "index:/index" in compose_service("build")["volumes"]
    assert service["ports"]
    assert all(port.startswith("127.0.0.1:") and port.endswith(":8080") for port in service["ports"])
    ast.parse(service["healthcheck"]["test"][-1])


def s3_environment(name: str) -> dict[str, Any]:
    environment: dict[str, Any] = compose_service(name)["environment"]
    return environment


def test_compose_starts_nothing_of_object_storage_unless_asked_to() -> None:
    for name in ("storage", "build-s3", "search-s3"):
        assert compose_service(name)["profiles"] == ["s3"]


def test_compose_searches_what_was_built_into_object_storage() -> None:
    build, search, storage = map(compose_service, ("build-s3", "search-s3", "storage"))
    assert build["depends_on"] == {"storage": {"condition": "service_healthy"}}
    assert search["depends_on"] == {
        "build-s3": {"condition": "service_completed_successfully"},
        "storage": {"condition": "service_healthy"},
    }
    shared = s3_environment("build-s3")
    assert s3_environment("search-s3") == {
        **shared,
        "GAUSSEARCH_API_KEY": None,
        "GAUSSEARCH_ALLOW_ANONYMOUS": "true",
    }
    scheme, _, location = shared["GAUSSEARCH_INDEX"].partition("://")
    assert scheme == "s3"
    assert f"-bucket={location.split('/')[0]}" in storage["command"]
    assert urlsplit(shared["AWS_ENDPOINT_URL"]).hostname == "storage"
    assert f":{urlsplit(shared['AWS_ENDPOINT_URL']).port}/" in storage["healthcheck"]["test"][-1]
    cache = PurePosixPath(shared["GAUSSEARCH_CACHE"])
    for service in (build, search):
        (volume,) = [each for each in service["volumes"] if each.startswith("cache:")]
        # The folder that the image gives to its user, so that a new volume is that user's, too.
        assert cache.is_relative_to(volume.split(":")[1])
        assert volume.split(":")[1] == only("cpu", "VOLUME")


def test_compose_keeps_object_storage_to_those_who_need_it() -> None:
    storage = compose_service("storage")
    require_locked_up(storage)
    assert "ports" not in storage
    assert re.fullmatch(r"[\w/]+:\d+\.\d+(\.\d+)?", storage["image"]), "a version, and no tag that moves"
    assert not storage["user"].startswith("0")
    assert storage["networks"] == compose_service("build-s3")["networks"] == ["storage"]
    assert compose_file()["networks"] == {"storage": {"internal": True}}
    keys = {name: value for name, value in s3_environment("build-s3").items() if "KEY" in name}
    assert storage["environment"] == keys
    assert all(re.fullmatch(r"\$\{S3_\w+:-[\w-]+\}", value) for value in keys.values())


def test_compose_names_volumes_that_there_are() -> None:
    compose = compose_file()
    named = {
        volume.partition(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if not volume.startswith(".")
    }
    assert named == set(compose["volumes"])


def test_extras_that_a_builder_names_are_installed_too(tmp_path: Path) -> None:
    (line,) = [rest for name, rest in STAGES["requirements"] if name == "RUN"]
    (program,) = re.findall(r'python3 -c "(.*?)" > /', line)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def requirements(extras: str) -> list[str]:
        code = program.replace("$extra", "cpu").replace("$EXTRAS", extras)
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.split("\n")[:-1]

    table = project()
    plain = [*table["dependencies"], *table["optional-dependencies"]["cpu"]]
    assert requirements("") == plain
    assert requirements("ray text") == [
        *plain,
        *table["optional-dependencies"]["ray"],
        *table["optional-dependencies"]["text"],
    ]


def test_compose_starts_no_gpu_service_unless_asked_to() -> None:
    assert compose_service("search-gpu")["profiles"] == ["gpu"]
    assert "profiles" not in compose_service("search")
    assert "profiles" not in compose_service("build")


def test_the_build_job_reads_the_sample() -> None:
    build = compose_service("build")
    corpus, destination, mode = build["volumes"][0].split(":")
    assert mode == "ro"
    document_file = build["command"][0].removeprefix(f"{destination}/")
    assert (ROOT / corpus / document_file).is_file()
    assert any(rest == "scripts/build_index.py /opt/gaussearch/scripts/" for _, rest in STAGES["cpu"])
    assert build["entrypoint"] == ["python", "/opt/gaussearch/scripts/build_index.py"]


@pytest.mark.parametrize("extra", ["", "cpu", "evaluate", "plot", "ray", "text", "dev"])
def test_every_dependency_is_pinned_to_a_version_the_project_allows(extra: str) -> None:
    table = project()
    pinned = pins()
    for line in table["optional-dependencies"][extra] if extra else table["dependencies"]:
        requirement = Requirement(line)
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{line} does not allow {version}"


def test_the_pins_leave_the_build_of_torch_and_of_faiss_open() -> None:
    pinned = pins()
    assert pinned["torch"].local is None
    assert not [name for name in pinned if re.match(r"nvidia|cuda|triton|faiss-gpu", name)]
