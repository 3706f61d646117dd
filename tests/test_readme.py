"""The README does what it says: its commands run, its response is the real one, its tables are the code's."""

import json
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.readme_commands import BASH, BLOCKS, README, ROOT, VENV, environment, run

pytestmark = pytest.mark.timeout(900)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def start_service(command: str, folder: Path, port: int) -> subprocess.Popen[bytes]:
    service = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=folder, env=environment())
    deadline = time.monotonic() + 120
    while True:
        assert service.poll() is None, f"{command} ended with {service.returncode}"
        assert time.monotonic() < deadline, f"{command} was not ready in time"
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == httpx.codes.OK:
                return service
        except httpx.TransportError:
            time.sleep(0.1)


def stop_service(service: subprocess.Popen[bytes]) -> int:
    service.send_signal(signal.SIGTERM)
    return service.wait(timeout=60)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which commands may write: the repository's own files by link, and the demo's index."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("index", "service", "sample", "scripts"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(VENV)
    run("gaussearch build sample/wordnet/documents.parquet --index demo-index", folder)
    run("gaussearch build sample/wordnet/documents.parquet --index my-index", folder)
    return folder


@pytest.fixture(scope="module")
def port(workspace: Path) -> Iterator[int]:
    """The service that the README starts first, on a port of our own."""
    chosen = free_port()
    (line,) = [line for body in BASH for line in body.splitlines() if "serve" in line and line.endswith("&")]
    service = start_service(f"{line.removesuffix('&')} --port {chosen}", workspace, chosen)
    yield chosen
    assert stop_service(service) == 0


@pytest.mark.parametrize("block", BASH, ids=lambda body: body.split("\n")[0][:50])
def test_commands_run(block: str, workspace: Path, port: int) -> None:
    for line in block.splitlines():
        if line.startswith("scripts/test.sh") or line.endswith("&"):
            continue  # these are the checks; and this service runs already
        if "scripts/benchmark" in line:
            continue  # tests/test_benchmark.py runs these, and looks at what they find
        if line.startswith("scripts/demo.sh"):
            if VENV.resolve() != (ROOT / ".venv").resolve():
                pytest.skip("the demo runs in .venv, and these tests do not: run scripts/test.sh")
            assert "-KL" in run(line, ROOT)
        elif line.startswith("docker"):
            pytest.skip("no Docker engine is assumed: .ci/run builds the image and searches in it without one")
        elif "serve" in line:
            other = free_port()
            assert stop_service(start_service(line.replace("8080", str(other)), workspace, other)) == 0
        else:
            run(line.replace(":8080", f":{port}"), workspace)


def test_request_has_the_response_shown(workspace: Path, port: int) -> None:
    (request,) = [line for line in BASH[1].splitlines() if line.startswith("curl")]
    answer = json.loads(run(request.replace(":8080", f":{port}"), workspace))
    shown, *_ = [json.loads(body) for language, body in BLOCKS if language == "json"]
    assert answer.pop("took_ms") > 0
    assert shown.pop("took_ms") > 0
    scores = [result.pop("score") for result in answer["results"]]
    assert scores == pytest.approx([result.pop("score") for result in shown["results"]], rel=1e-12)
    assert answer == shown


def test_evaluation_is_the_one_shown(workspace: Path) -> None:
    (command,) = [line for body in BASH for line in body.splitlines() if "--save-run" in line]
    (shown,) = [body for language, body in BLOCKS if language == "text" and "queries evaluated" in body]
    assert run(command, workspace) == shown


def test_request_stands_on_the_first_page() -> None:
    assert "curl -s" in "\n".join(README.splitlines()[:30])


def test_python_runs(workspace: Path) -> None:
    (program,) = [body for language, body in BLOCKS if language == "python"]
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=workspace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['n02844714'")
    last = done.stdout.splitlines()[-1]
    assert f"print(added.written, added.replaced, deleted.deleted, deleted.missing)  # {last}\n" in program


def test_tables_are_those_of_the_code() -> None:
    updated = runpy.run_path(str(ROOT / "scripts" / "update_readme.py"))["updated"]
    assert updated(README) == README, "run python scripts/update_readme.py"


def test_what_commands_write_is_ignored_by_git() -> None:
    commands = "\n".join([*BASH, *re.findall(r"`((?:gaussearch|openssl) [^`\n]+)`", README)])
    written = set(
        re.findall(
            r"(?:--index|--json|--markdown|--save-run|--per-query|gaussearch backup| >) ([a-z][\w.-]*)", commands
        )
    )
    assert {"my-index", "run.trec"} <= written
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    assert written <= ignored, f"add {', '.join(sorted(written - ignored))} to .gitignore"


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)", README) if "://" not in target]
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]
