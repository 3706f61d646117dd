"""docs/licences.md lists what gaussearch[cpu,evaluate] runs with, at the versions of constraints.txt, and no more."""

import re
import runpy
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.test_container_files import pins, project

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "update_licences.py"))
TEXT = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([\w.-]+) \| ([\w.]+) \| (.+) \|$", TEXT, re.MULTILINE)[1:]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_table_is_what_is_installed() -> None:
    assert SCRIPT["render"]() == TEXT, "run python scripts/update_licences.py"


def test_its_versions_are_those_that_are_pinned() -> None:
    pinned = {normal(name): str(version) for name, version in pins().items()}
    assert len(ROWS) > 20
    for name, version, licence in ROWS:
        assert pinned[normal(name)] == version
        assert licence.strip()


def test_it_holds_what_the_package_requires_and_nothing_for_its_development() -> None:
    listed = {normal(name) for name, _, _ in ROWS}
    table = project()
    extras = table["optional-dependencies"]
    required = [*table["dependencies"], *extras["cpu"], *extras["evaluate"]]
    assert {normal(Requirement(line).name) for line in required} <= listed
    # What no requirement names, but one of them requires.
    assert {"starlette", "pydantic-core", "anyio", "jinja2", "h11", "pytrec-eval-terrier"} <= listed
    assert not {"pytest", "mypy", "ruff", "hypothesis", "matplotlib", "ipykernel", "schemathesis"} & listed


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([("License-Expression", "MIT OR " * 20 + "MIT"), ("License", "BSD")], "MIT OR " * 20 + "MIT"),
        ([("License", "BSD"), ("Classifier", "License :: OSI Approved :: MIT License")], "BSD"),
        ([("License", "Copyright\nand more"), ("Classifier", "License :: OSI Approved :: MIT License")], "MIT License"),
        ([("License", "x" * 81), ("Classifier", "License :: OSI Approved :: MIT License")], "MIT License"),
        (
            [
                ("License", "UNKNOWN"),
                ("Classifier", "Typing :: Typed"),
                ("Classifier", "License :: OSI Approved :: MIT License"),
                ("Classifier", "License :: Public Domain"),
            ],
            "MIT License, Public Domain",
        ),
    ],
)
def test_a_licence_is_what_metadata_says_best(fields: list[tuple[str, str]], expected: str) -> None:
    assert SCRIPT["licence"](metadata(fields)) == expected


def test_a_package_without_a_licence_is_named() -> None:
    with pytest.raises(ValueError, match=r"silent 1\.0 says nothing"):
        SCRIPT["licence"](metadata([("Name", "silent"), ("Version", "1.0")]))


def metadata(fields: list[tuple[str, str]]) -> Any:
    message = Message()
    for name, value in fields:
        message[name] = value
    return message
