"""SECURITY.md promises nothing that no test holds."""

import ast
import re
from pathlib import Path

import pytest

from service.index_responses import Limits

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
SECTIONS = dict(re.findall(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL))
OPEN = "<!-- test -->"


def rows(section: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED}))
def test_every_test_that_is_named_exists(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
    assert {name for named, name in NAMED if named == path} <= defined


@pytest.mark.parametrize("name", SECTIONS)
def test_every_promise_has_a_test(name: str) -> None:
    table = rows(SECTIONS[name])
    assert table
    for promise, tests in table:
        assert promise
        # What is still open is marked, and in one place.
        assert re.fullmatch(r"`[^`]+::test_\w+`(, `[^`]+::test_\w+`)*", tests) or (
            tests == OPEN and name == "Index directories"
        )


def test_every_limit_stands_beside_its_promise() -> None:
    # These bound how queries are put together, not what a client may cost.
    others = {"timeout_ms", "max_batch_rows"}
    assert set(Limits.model_fields) - others <= set(re.findall(r"`(\w+)`", SECTIONS["What a client may cost"]))


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)", TEXT) if "://" not in target]
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]
