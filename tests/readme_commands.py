"""The README's commands, and what it takes to run them as its reader does."""

import os
import re
import subprocess
import sys
from pathlib import Path

__all__ = ["BASH", "BLOCKS", "README", "ROOT", "VENV", "environment", "run"]

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
BASH = [body for language, body in BLOCKS if language == "bash"]
VENV = Path(sys.prefix)


def environment() -> dict[str, str]:
    """What the README's reader has: the environment's commands, and no settings of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GAUSSEARCH_")}
    # pip may look at what is here and change nothing.
    pip = {"PIP_DRY_RUN": "1", "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    return {**kept, **pip, "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}", "NO_PROXY": "127.0.0.1"}


def run(command: str, folder: Path) -> str:
    """What a command prints in a folder; it must succeed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
