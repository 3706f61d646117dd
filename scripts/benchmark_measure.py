"""Measuring on machines that others use too.

What is compared takes turns, A, B, A, B, in many short rounds, and a ratio is taken in each round by itself: load from
outside, clock speeds and caches then touch both sides alike. A figure is the median over the rounds, with quartiles.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

PACKAGES = ("gaussearch", "torch", "faiss-cpu", "faiss-gpu", "numpy", "pyarrow", "fastapi", "uvicorn")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        low, median, high = np.percentile(list(values), (25, 50, 75)).tolist()
        return cls(median, low, high)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report. `latency_ms` is p50 and p99; `met` is whether `target` is, where there is one."""

    part: str
    setting: str
    measure: str
    value: float
    unit: str
    quartiles: tuple[float, float] | None = None
    latency_ms: tuple[float, float] | None = None
    target: str | None = None
    met: bool | None = None

    @classmethod
    def of(
        cls,
        part: str,
        setting: str,
        measure: str,
        value: Spread | float,
        unit: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> Figure:
        spread = value if isinstance(value, Spread) else None
        number = value.median if isinstance(value, Spread) else value
        if at_least is not None:
            target, met = f"≥ {at_least:g}", number >= at_least
        elif at_most is not None:
            target, met = f"≤ {at_most:g}", number <= at_most
        else:
            target, met = None, None
        quartiles = (spread.low, spread.high) if spread else None
        return cls(part, setting, measure, number, unit, quartiles, target=target, met=met)

    @classmethod
    def rate(cls, part: str, setting: str, measure: str, series: Series, unit: str) -> Figure:
        """How much work a contender does per second, and how long one operation takes."""
        figure = cls.of(part, setting, measure, series.rate(), unit)
        return replace(figure, latency_ms=(series.latency(50), series.latency(99)))


@dataclass(frozen=True, slots=True)
class Turn:
    """What one contender did in one round; `latencies` are those of its single operations, in seconds."""

    work: float
    seconds: float
    latencies: list[float]


Contender = Callable[[float], Turn]
"""Works for about so many seconds, and for one operation at least."""


@dataclass(slots=True)
class Series:
    """The turns of one contender, one a round."""

    turns: list[Turn] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        return [turn.work / turn.seconds for turn in self.turns]

    def rate(self) -> Spread:
        """Work per second."""
        return Spread.of(self.rates)

    def over(self, other: Series) -> Spread:
        """This contender's rate over the other's, round by round."""
        return Spread.of(mine / theirs for mine, theirs in zip(self.rates, other.rates, strict=True))

    def latency(self, percent: float) -> float:
        """A percentile of all operations, in milliseconds."""
        latencies = [latency for turn in self.turns for latency in turn.latencies]
        return float(np.percentile(latencies, percent)) * 1e3


def repeating(operation: Callable[[], float]) -> Contender:
    """A contender that repeats an operation, which returns how much work it did, until its time is up."""

    def work_for(seconds: float) -> Turn:
        done, latencies, started = 0.0, [], time.perf_counter()
        before = started
        while True:
            done += operation()
            now = time.perf_counter()
            latencies.append(now - before)
            before = now
            if now - started >= seconds:
                return Turn(done, now - started, latencies)

    return work_for


def once(operation: Callable[[], float], tidy: Callable[[], object]) -> Contender:
    """A contender whose turn is one operation, however long it takes; `tidy` follows it and is not timed.

    Neither is the wait for the disk, so that nobody's writing or removing is left for the next one's turn.
    """

    def work(_: float) -> Turn:
        started = time.perf_counter()
        done = operation()
        seconds = time.perf_counter() - started
        tidy()
        os.sync()
        return Turn(done, seconds, [seconds])

    return work


def take_turns(contenders: Mapping[str, Contender], *, seconds: float, rounds: int) -> dict[str, Series]:
    """Lets every contender work for `seconds` in all, spread over `rounds`, after a turn each that does not count.

    The order changes from round to round, so that none always runs after the same other.
    """
    names = list(contenders)
    for name in names:
        contenders[name](0.0)
    series = {name: Series() for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            series[name].turns.append(contenders[name](seconds / rounds))
    return series


def environment(arguments: dict[str, Any], script: str = "benchmark.py") -> dict[str, Any]:
    """Where and with what the figures were made."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", f"scripts/{script}", *sys.argv[1:]]),
        "arguments": arguments,
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "cuda_device": cuda,
            "load_average_before": os.getloadavg()[0],
        },
        "versions": versions,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
