"""How many files this process may have open."""

import contextlib
import resource

__all__ = ["allow_descriptors"]

MOST = 1 << 16


def allow_descriptors() -> None:
    """Has as many files open as the system lets this process have, up to MOST.

    Systems set a lower limit for programs that watch descriptors by `select`, which fails beyond 1,024 of them. There
    are three for each segment of an index, and one for each connection.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        # Some systems allow fewer than they say.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
