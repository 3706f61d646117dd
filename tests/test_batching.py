"""The batcher: what is searched together, what is dropped, and that one request's trouble is nobody else's."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

import service.batching
from index import Effort, GaussearchError, Gaussians, Ranking, Searcher
from index.documents import Numbers
from index.errors import InvalidGaussiansError
from index.interface import Stop
from index.selection import DocumentFilter
from service.batching import Batcher
from service.metrics import Metrics
from service.problems import DeadlineExceededError, NotReadyError, OverloadedError
from service.searching import FETCHED_TOGETHER, Found
from tests.serving import PATIENCE, wait_until

FAR = float("inf")
BAD = -1.0


def query(*values: float, k: int = 2) -> Gaussians:
    """A Gaussian for each value, which its mean carries so that results show which query they are of."""
    means = torch.tensor(values, dtype=torch.float64)[:, None].repeat(1, k)
    return Gaussians(means, torch.ones_like(means))


class FakeSearcher:
    """Ranks documents "<query>/<place>" with score -place; waits for `gate`, and fails as it is told to."""

    def __init__(self) -> None:
        self.manifest = SimpleNamespace(k=2, documents=100)
        self.gate = threading.Event()
        self.calls: list[tuple[list[float], int, int | None]] = []
        self.exact: list[bool] = []
        self.approximate = False
        self.fetched: list[list[int]] = []
        self.error: Exception | None = None

    def search(
        self,
        queries: Gaussians,
        top_k: int,
        *,
        candidates: int | None = None,
        nprobe: int | None = None,
        exact: bool = False,
        filter: DocumentFilter | None = None,  # noqa: A002
        stop: Stop | None = None,
    ) -> list[Ranking]:
        values = queries.means[:, 0].tolist()
        self.calls.append((values, top_k, candidates))
        self.exact.append(exact)
        assert self.gate.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        if BAD in values:
            raise InvalidGaussiansError(f"row {values.index(BAD)} is bad")
        return [
            Ranking([f"{value:g}/{place}" for place in range(top_k)], -np.arange(top_k, dtype=float), np.arange(top_k))
            for value in values
        ]

    def effort_for(self, top_k: int, candidates: int | None, nprobe: int | None) -> Effort | None:
        return Effort(candidates or 20 * top_k, nprobe) if self.approximate else None

    def payloads(self, documents: Numbers) -> list[dict[str, Any]]:
        self.fetched.append(documents.tolist())
        return [{"place": place} for place in documents.tolist()]


class Bench:
    """A batcher, its searcher and its metrics."""

    def __init__(self, max_rows: int, queue_rows: int) -> None:
        self.searcher = FakeSearcher()
        self.metrics = Metrics()
        self.batcher = Batcher(
            lambda: cast("Searcher", self.searcher), self.metrics, max_rows=max_rows, queue_rows=queue_rows
        )
        self.batcher.start()

    def submit(
        self,
        queries: Gaussians,
        top_k: int = 1,
        candidates: int | None = None,
        deadline: float = FAR,
        *,
        exact: bool = False,
        with_payload: bool = False,
    ) -> "asyncio.Future[Found]":
        return self.batcher.submit(queries, top_k, candidates, deadline, exact=exact, with_payload=with_payload)

    async def occupied(self) -> "asyncio.Future[Found]":
        """Has the search thread begin a search of query 0, which lasts until the gate is opened."""
        self.searcher.gate.clear()
        begun = len(self.searcher.calls)
        future = self.submit(query(0))
        await asyncio.to_thread(wait_until, lambda: len(self.searcher.calls) > begun)
        return future

    def rejected(self, reason: str) -> float:
        return self.number("gaussearch_rejected_total", reason=reason)

    def number(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


Open = Callable[..., Bench]


@pytest.fixture
def bench() -> Iterator[Open]:
    opened: list[Bench] = []

    def make(max_rows: int = 8, queue_rows: int = 100) -> Bench:
        opened.append(Bench(max_rows, queue_rows))
        return opened[-1]

    yield make
    for each in opened:
        each.searcher.gate.set()
        each.batcher.close()


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, PATIENCE))


def ids(found: Found) -> list[list[str]]:
    return [ranking.ids for ranking in found.rankings]


def test_an_idle_batcher_searches_at_once_and_alone(bench: Open) -> None:
    async def scenario() -> None:
        b = bench()
        b.searcher.gate.set()
        for value in (1.0, 2.0, 3.0):
            assert ids(await b.submit(query(value))) == [[f"{value:g}/0"]]
        assert b.searcher.calls == [([1.0], 1, None), ([2.0], 1, None), ([3.0], 1, None)]

    run(scenario())


def test_what_arrives_during_a_search_is_searched_together_by_rows(bench: Open) -> None:
    async def scenario() -> None:
        b = bench(max_rows=4)
        first = await b.occupied()
        waiting = [b.submit(query(1, 2)), b.submit(query(3)), b.submit(query(4, 5)), b.submit(query(*range(6, 16)))]
        waiting.append(b.submit(query(16)))
        assert b.number("gaussearch_queue_rows") == 16
        b.searcher.gate.set()
        found = await asyncio.gather(first, *waiting)
        # 1, 2 and 3 make three of four rows and 4, 5 do not fit; ten rows are more than a batch and go alone.
        assert [call[0] for call in b.searcher.calls] == [[0], [1, 2, 3], [4, 5], list(range(6, 16)), [16]]
        assert [len(each.rankings) for each in found] == [1, 2, 1, 2, 10, 1]
        assert [name for each in found for (name,) in ids(each)] == [f"{value}/0" for value in range(17)]
        assert b.number("gaussearch_queue_rows") == 0
        assert b.number("gaussearch_batch_rows_sum") == 17
        assert b.number("gaussearch_batch_rows_count") == 5
        assert b.number("gaussearch_search_seconds_count") == 5
        assert b.number("gaussearch_scanned_documents_total") == 1700

    run(scenario())


async def after_a_search_of(seconds: float, b: Bench) -> None:
    """Has the batcher just searched for that long, so that it is willing to wait for a share of it."""
    first = await b.occupied()
    await asyncio.sleep(seconds)
    b.searcher.gate.set()
    await first
    b.searcher.calls.clear()


def test_queries_of_successive_rounds_of_the_loop_are_searched_together(
    bench: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine may take longer for fifty rounds.
    monkeypatch.setattr(service.batching, "LONGEST_GATHERING", FAR)

    async def scenario() -> None:
        b = bench(max_rows=100)
        b.batcher._search_seconds = FAR
        b.searcher.gate.set()
        waiting = []
        for value in range(50):
            waiting.append(b.submit(query(value)))
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        assert [call[0] for call in b.searcher.calls] == [list(range(50))]

    run(scenario())


def test_a_loop_that_is_never_quiet_is_waited_for_for_a_limited_time(bench: Open) -> None:
    async def scenario() -> None:
        b = bench(max_rows=10**9, queue_rows=10**9)
        await after_a_search_of(0.2, b)
        started, waiting = time.monotonic(), []
        while not b.searcher.calls and time.monotonic() - started < PATIENCE / 2:
            waiting.append(b.submit(query(1)))
            await asyncio.sleep(0)
        assert b.searcher.calls
        await asyncio.gather(*waiting)

    run(scenario())


def test_those_who_have_just_been_answered_may_ask_again_before_the_next_search(bench: Open) -> None:
    async def scenario() -> None:
        b = bench(max_rows=100)

        async def ask_twice(value: float) -> None:
            await b.submit(query(value))
            await b.submit(query(value + 0.5))

        first = await b.occupied()
        clients = [asyncio.create_task(ask_twice(value)) for value in (1, 2)]
        await asyncio.sleep(0.2)
        clients += [asyncio.create_task(ask_twice(3))]
        await asyncio.sleep(0)
        b.searcher.gate.set()
        await asyncio.gather(first, *clients)
        assert [call[0] for call in b.searcher.calls] == [[0], [1, 2, 3], [1.5, 2.5, 3.5]]

    run(scenario())


def test_a_full_batch_does_not_wait_for_the_loop_to_be_quiet(bench: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.batching, "LONGEST_GATHERING", FAR)
    monkeypatch.setattr(service.batching, "QUIET_ROUNDS", 10**9)

    async def scenario() -> None:
        b = bench(max_rows=4)
        b.batcher._search_seconds = FAR
        few = [b.submit(query(1)), b.submit(query(2, 3))]
        for _ in range(100):
            await asyncio.sleep(0)
        assert b.searcher.calls == []
        few.append(b.submit(query(4)))
        b.searcher.gate.set()
        await asyncio.gather(*few)
        assert b.searcher.calls == [([1.0, 2.0, 3.0, 4.0], 1, None)]

    run(scenario())


def test_payloads_of_a_batch_are_fetched_together_for_those_who_want_few(bench: Open) -> None:
    async def scenario() -> None:
        b = bench()
        first = await b.occupied()
        futures = [
            b.submit(query(1), top_k=2, with_payload=True),
            b.submit(query(2), top_k=3, with_payload=False),
            b.submit(query(3, 4), top_k=FETCHED_TOGETHER // 2, with_payload=True),
            b.submit(query(5), top_k=FETCHED_TOGETHER + 1, with_payload=True),
        ]
        b.searcher.gate.set()
        found = await asyncio.gather(first, *futures)
        # Each document once, however many results it is in.
        assert b.searcher.fetched == [list(range(FETCHED_TOGETHER // 2))]
        assert [its.payloads is not None for its in found] == [False, True, False, True, False]
        assert found[1].payloads is not None
        assert {found[1].payloads[number]["place"] for number in (0, 1)} == {0, 1}

    run(scenario())


def test_options_of_one_batch_do_not_mix(bench: Open) -> None:
    async def scenario() -> None:
        b = bench()
        first = await b.occupied()
        few, many = b.submit(query(1), top_k=2), b.submit(query(2, 3), top_k=5, candidates=40)
        b.searcher.gate.set()
        await first
        assert ids(await few) == [["1/0", "1/1"]]
        assert ids(await many) == [[f"{value}/{place}" for place in range(5)] for value in (2, 3)]
        assert [len(ranking.scores) for ranking in (await few).rankings] == [2]
        # The most that anyone asked for, and no candidates where nobody asked for any.
        assert b.searcher.calls == [([0], 1, None), ([1, 2, 3], 5, 40)]

    run(scenario())


def test_where_candidates_decide_nobody_gets_those_of_others(bench: Open) -> None:
    """An approximate index is searched once for each number of candidates, and last for whoever wants exact results."""

    async def scenario() -> None:
        b = bench()
        b.searcher.approximate = True
        first = await b.occupied()
        exact = b.submit(query(1), top_k=2, exact=True)
        others = [
            b.submit(query(2), top_k=2),
            b.submit(query(3), top_k=1, candidates=40),
            b.submit(query(4), top_k=5, candidates=40),
            b.submit(query(5), top_k=5),
            b.submit(query(6), top_k=5, candidates=7, exact=True),
        ]
        b.searcher.gate.set()
        await first
        assert ids(await exact) == [["1/0", "1/1"]]
        assert [len((await it).rankings[0].ids) for it in others] == [2, 1, 5, 5, 5]
        searched = list(zip(b.searcher.calls[1:], b.searcher.exact[1:], strict=True))
        assert searched == [
            (([2, 3, 4], 5, 40), False),
            (([5], 5, 100), False),
            (([1, 6], 5, 7), True),
        ]

    run(scenario())


def test_a_full_queue_turns_away_and_says_when_to_return(bench: Open) -> None:
    async def scenario() -> None:
        b = bench(queue_rows=3)
        first = await b.occupied()
        waiting = [b.submit(query(1, 2)), b.submit(query(3))]
        with pytest.raises(OverloadedError, match="3 queries are waiting and 3 may") as caught:
            b.submit(query(4))
        assert int(caught.value.headers["Retry-After"]) >= 1
        assert b.rejected("overloaded") == 1
        b.searcher.gate.set()
        await asyncio.gather(first, *waiting)
        assert ids(await b.submit(query(5))) == [["5/0"]]

    run(scenario())


def test_an_empty_queue_takes_a_request_of_any_size(bench: Open) -> None:
    async def scenario() -> None:
        b = bench(max_rows=2, queue_rows=3)
        b.searcher.gate.set()
        assert len((await b.submit(query(*range(50)))).rankings) == 50

    run(scenario())


def test_cancelled_and_late_requests_are_not_searched(bench: Open) -> None:
    async def scenario() -> None:
        b = bench()
        first = await b.occupied()
        cancelled, kept = b.submit(query(1)), b.submit(query(2))
        late = b.submit(query(3), deadline=time.monotonic() - 1)
        late_and_cancelled = b.submit(query(4), deadline=time.monotonic() - 1)
        cancelled.cancel()
        late_and_cancelled.cancel()
        b.searcher.gate.set()
        await first
        assert ids(await kept) == [["2/0"]]
        with pytest.raises(DeadlineExceededError):
            await late
        assert [call[0] for call in b.searcher.calls] == [[0], [2]]
        assert (b.rejected("cancelled"), b.rejected("deadline")) == (1, 2)
        assert b.number("gaussearch_queue_rows") == 0

    run(scenario())


def test_dropped_requests_take_no_place_in_a_batch(bench: Open) -> None:
    async def scenario() -> None:
        b = bench(max_rows=2)
        first = await b.occupied()
        dropped = [b.submit(query(1)), b.submit(query(2))]
        kept = [b.submit(query(3)), b.submit(query(4))]
        for future in dropped:
            future.cancel()
        b.searcher.gate.set()
        await asyncio.gather(first, *kept)
        assert [call[0] for call in b.searcher.calls] == [[0], [3, 4]]

    run(scenario())


@pytest.mark.parametrize("bad", [query(BAD), query(7, k=3)], ids=["refused by the searcher", "of another width"])
def test_a_bad_query_fails_its_own_request_only(bench: Open, bad: Gaussians) -> None:
    async def scenario() -> None:
        b = bench()
        first = await b.occupied()
        futures = [b.submit(query(1)), b.submit(bad), b.submit(query(2), top_k=2)]
        b.searcher.gate.set()
        await first
        one, refused, two = await asyncio.gather(*futures, return_exceptions=True)
        assert isinstance(refused, InvalidGaussiansError)
        assert ids(cast("Found", one)) == [["1/0"]]
        assert ids(cast("Found", two)) == [["2/0", "2/1"]]

    run(scenario())


def test_one_bad_query_among_many_costs_few_searches(bench: Open) -> None:
    """Or whoever goes on sending such queries would have everybody searched for one by one."""

    async def scenario() -> None:
        b = bench(max_rows=64)
        first = await b.occupied()
        futures = [b.submit(query(BAD if value == 37 else value)) for value in range(64)]
        b.searcher.gate.set()
        await first
        found = await asyncio.gather(*futures, return_exceptions=True)
        assert isinstance(found.pop(37), InvalidGaussiansError)
        assert [ids(cast("Found", one)) for one in found] == [[[f"{value}/0"]] for value in range(64) if value != 37]
        # All together, and then two halves of what the bad one is in, down to itself.
        assert [len(values) for values, _, _ in b.searcher.calls[1:]] == [64, 32, 32, 16, 8, 4, 4, 2, 1, 1, 2, 8, 16]

    run(scenario())


def test_halves_that_are_given_up_meanwhile_are_answered_and_not_searched(bench: Open) -> None:
    async def scenario() -> None:
        b = bench()
        first = await b.occupied()
        bad, late, cancelled, good = (b.submit(query(value), deadline=FAR) for value in (BAD, 2, 3, 4))
        search = b.searcher.search

        def slowly(*arguments: Any, **options: Any) -> list[Ranking]:
            if len(b.searcher.calls) == 1:
                b.batcher._batch[1].deadline = 0.0
                b.batcher._batch[2].future.cancel()
            return search(*arguments, **options)

        b.searcher.search = slowly  # type: ignore[method-assign]
        b.searcher.gate.set()
        await first
        assert ids(await good) == [["4/0"]]
        with pytest.raises(InvalidGaussiansError):
            await bad
        with pytest.raises(DeadlineExceededError):
            await late
        assert cancelled.cancelled()
        assert [values for values, _, _ in b.searcher.calls] == [[0], [BAD, 2, 3, 4], [BAD], [4]]

    run(scenario())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_leaves_nobody_waiting(bench: Open) -> None:
    async def scenario() -> None:
        b = bench(max_rows=1)
        futures = [await b.occupied(), b.submit(query(1)), b.submit(query(2, 3))]
        b.searcher.error = SystemExit()  # type: ignore[assignment]
        b.searcher.gate.set()
        for outcome in await asyncio.gather(*futures, return_exceptions=True):
            assert isinstance(outcome, NotReadyError)
        with pytest.raises(NotReadyError):
            b.submit(query(4))
        await asyncio.to_thread(wait_until, lambda: not b.batcher.alive)
        assert b.number("gaussearch_queue_rows") == 0

    run(scenario())


def test_turning_away_costs_the_same_however_long_the_queue(bench: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue is not looked through for each client that it turns away."""
    looked_at: list[Any] = []
    drop_if_given_up = Batcher._drop_if_given_up

    def counted(batcher: Batcher, job: Any) -> bool:
        looked_at.append(job)
        return drop_if_given_up(batcher, job)

    async def scenario() -> None:
        b = bench(queue_rows=500)
        first = await b.occupied()
        waiting = [b.submit(query(1)) for _ in range(500)]
        monkeypatch.setattr(Batcher, "_drop_if_given_up", counted)
        monkeypatch.setattr(service.batching, "LOOKING_SHARE", 1e-9)
        for _ in range(100):
            with pytest.raises(OverloadedError):
                b.submit(query(2))
        assert len(looked_at) == 500
        assert b.rejected("overloaded") == 100
        # Some time later it is looked through again, and whoever has gone has left a place.
        b.batcher._look_again_at = 0.0
        waiting.pop().cancel()
        waiting.append(b.submit(query(3)))
        assert len(looked_at) == 1000
        b.searcher.gate.set()
        await asyncio.gather(first, *waiting)

    run(scenario())


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), MemoryError(), KeyError("x"), RecursionError()])
def test_an_unforeseen_failure_ends_its_batch_and_not_the_thread(bench: Open, error: Exception) -> None:
    async def scenario() -> None:
        b = bench()
        first = await b.occupied()
        together = [b.submit(query(1)), b.submit(query(2))]
        b.searcher.error = error
        b.searcher.gate.set()
        for outcome in await asyncio.gather(first, *together, return_exceptions=True):
            assert type(outcome) is GaussearchError
            assert repr(error) in str(outcome)
        b.searcher.error = None
        assert ids(await b.submit(query(3))) == [["3/0"]]
        assert b.batcher.alive

    run(scenario())


def test_a_request_whose_loop_has_gone_does_not_end_the_thread(bench: Open) -> None:
    b = bench()

    async def abandon() -> None:
        await b.occupied()

    asyncio.run(abandon())
    b.searcher.gate.set()

    async def scenario() -> None:
        assert ids(await b.submit(query(1))) == [["1/0"]]

    run(scenario())


def test_close_finishes_what_was_accepted_and_takes_nothing_more(bench: Open) -> None:
    async def scenario() -> None:
        b = bench(max_rows=1)
        first = await b.occupied()
        waiting = [b.submit(query(1)), b.submit(query(2))]
        closing = asyncio.create_task(asyncio.to_thread(b.batcher.close))
        await asyncio.to_thread(wait_until, lambda: not b.batcher.accepting)
        with pytest.raises(NotReadyError):
            b.submit(query(3))
        assert b.batcher.alive
        assert not closing.done()
        b.searcher.gate.set()
        await closing
        assert [ids(each) for each in await asyncio.gather(first, *waiting)] == [[["0/0"]], [["1/0"]], [["2/0"]]]
        assert not b.batcher.alive

    run(scenario())


def test_results_come_from_the_searcher_of_the_moment(bench: Open) -> None:
    async def scenario() -> None:
        b = bench()
        b.searcher.gate.set()
        before, earlier = b.searcher, await b.submit(query(1))
        b.searcher = FakeSearcher()
        b.searcher.gate.set()
        later = await b.submit(query(1))
        assert earlier.searcher is cast("Searcher", before)
        assert later.searcher is cast("Searcher", b.searcher)

    run(scenario())
