"""Commands may have as many files open as the system lets them."""

import resource
import subprocess
import sys

import pytest

from service.descriptors import MOST

SHOW = """
import resource
from service.descriptors import allow_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
allow_descriptors()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize("soft", [256, 2048])
def test_the_limit_is_raised_to_what_is_allowed_and_never_lowered(soft: int) -> None:
    for hard in (2048, 4096):
        code = SHOW.format(soft=soft, hard=hard)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(hard), str(hard)]


def test_no_more_are_asked_for_than_are_needed() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard <= MOST:
        pytest.skip("this system allows no more")
    code = SHOW.format(soft=256, hard=hard)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == str(MOST)


def test_the_command_has_them() -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 4096)); import service.cli as cli; "
        "cli.app = lambda: print(resource.getrlimit(resource.RLIMIT_NOFILE)[0]); cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4096"]
