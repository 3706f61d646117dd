"""Cores: how many there are to use, and how torch is kept to one where its threads would be in the way.

After an operation torch's OpenMP threads go on spinning for a while, in case there is another one. On a core that has
other work by then, a scan or a block of documents being encoded, that is time lost: a search of one query took half as
long again, a build three times as long.
"""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["available_cores", "one_core_each", "torch_on_all_cores", "torch_on_one_core"]


def available_cores() -> int:
    """Cores that this process may run on; Linux knows, elsewhere it is all that there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def torch_on_one_core() -> contextlib.AbstractContextManager[None]:
    """Keeps what torch does in this thread, inside the block, on the core that the thread runs on."""
    return _torch_on(1)


def torch_on_all_cores() -> contextlib.AbstractContextManager[None]:
    """Lets what torch does in this thread, inside the block, use all cores, whatever the threads around it do."""
    return _torch_on(available_cores())


@contextlib.contextmanager
def _torch_on(cores: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def one_core_each(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in each of which torch keeps to one core: pieces of work of their own share the cores out better than
    torch's threads do, which meet after every operation."""
    with (
        torch_on_one_core(),  # what a new thread of torch begins with, too
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        yield pool
