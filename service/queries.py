"""Gaussians that a request gives, or says in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from starlette.requests import Request

from index import Gaussians
from index.errors import InvalidGaussiansError
from index.text import Role
from service.encoding import located
from service.problems import LimitExceededError
from service.requests import wait_for
from service.schemas import QueryGaussian, gaussians_of
from service.state import State
from service.uncertainty import Uncertainty, uncertainty

__all__ = ["Told", "encode", "gaussians_told"]


@dataclass(frozen=True, slots=True)
class Told:
    """Gaussians (b, k), and how uncertain those are that were said in words; None for the others."""

    gaussians: Gaussians
    uncertainties: list[Uncertainty | None]

    @property
    def in_words(self) -> bool:
        """Whether any of them was said in words."""
        return any(each is not None for each in self.uncertainties)


async def gaussians_told(
    request: Request, state: State, told: Sequence[QueryGaussian], role: Role, deadline: float
) -> Told:
    """The Gaussians of a request in float64, by the service's model where there are words.

    Raises what gaussians_of and `encode` raise, with the rows of the request.
    """
    k = state.live.searcher().manifest.k
    worded = [row for row, each in enumerate(told) if each.text is not None]
    if not worded:
        return Told(gaussians_of(list(told), k), [None] * len(told))
    # What is given is looked at first: the model's time is not for a request that is refused.
    others = [row for row in range(len(told)) if told[row].text is None]
    rows = others
    try:
        given = gaussians_of([told[row] for row in others], k) if others else None
        rows = worded
        made = await encode(request, state, [told[row].words for row in worded], role, deadline)
    except InvalidGaussiansError as error:
        raise located(error, rows) from error
    made.require_dimensions(k)
    means, variances = (torch.empty(len(told), k, dtype=torch.float64) for _ in range(2))
    uncertainties: list[Uncertainty | None] = [None] * len(told)
    for rows, gaussians in ((worded, made), (others, given)):
        if gaussians is not None:
            means[rows], variances[rows] = gaussians.means.double(), gaussians.variances.double()
    for row, each in zip(worded, uncertainty(made), strict=True):
        uncertainties[row] = each
    return Told(Gaussians(means, variances), uncertainties)


async def encode(request: Request, state: State, texts: Sequence[str], role: Role, deadline: float) -> Gaussians:
    """The Gaussians of texts; raises LimitExceededError for one that is too long, and what Encoding.submit raises."""
    longest = max(map(len, texts))
    if longest > state.settings.max_text_letters:
        raise LimitExceededError(f"a text has {longest} letters; the limit is {state.settings.max_text_letters}")
    return await wait_for(state.encoding.submit(texts, role, deadline), request, deadline)
