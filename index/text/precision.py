"""What a model of texts computes in."""

import time
from enum import StrEnum
from functools import cache

import torch

from index.cores import torch_on_all_cores

__all__ = ["DTYPES", "TextPrecision", "choose_precision"]

FASTER = 1.3
"""How many times as fast bfloat16 must be measured to be on a CPU before it is chosen: converting costs, too."""
TOKENS, WIDTH = 1024, 768
"""The measured product: some texts, in a model of a usual width."""


class TextPrecision(StrEnum):
    """The floating point that a transformer is run in; its output becomes float32, and heads are."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


DTYPES = {TextPrecision.FLOAT32: torch.float32, TextPrecision.BFLOAT16: torch.bfloat16}
"""What weights and activations are. Not autocast, which converts weights at every use: on an H200 it took from 1.6 to
2.9 times as long as weights in bfloat16, and for short texts longer than float32."""


def choose_precision(asked: TextPrecision, device: torch.device) -> TextPrecision:
    """What is asked for; for `auto` bfloat16 where the device is faster with it.

    CUDA devices with bfloat16 units are. CPUs with such are, too, and others many times slower: this is measured, once.
    """
    asked = TextPrecision(asked)
    if asked is not TextPrecision.AUTO:
        return asked
    faster = torch.cuda.get_device_capability(device) >= (8, 0) if device.type == "cuda" else _cpu_is_faster()
    return TextPrecision.BFLOAT16 if faster else TextPrecision.FLOAT32


@cache
def _cpu_is_faster() -> bool:
    return _seconds(torch.float32) > FASTER * _seconds(torch.bfloat16)


def _seconds(dtype: torch.dtype) -> float:
    """The shortest of some products of activations with weights."""
    activations, weights = (torch.ones(rows, WIDTH, dtype=dtype) for rows in (TOKENS, WIDTH))
    taken = []
    with torch_on_all_cores(), torch.inference_mode():
        for _ in range(4):
            started = time.perf_counter()
            torch.nn.functional.linear(activations, weights)
            taken.append(time.perf_counter() - started)
    return min(taken)
