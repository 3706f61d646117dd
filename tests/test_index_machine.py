"""Any sequence of changes of an index, backups and restorations gives what a dictionary would, and so does every
generation that is kept and every searcher that was opened on the way."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, build_index
from index.backup import back_up
from index.build_options import AddOptions, CompactOptions, WriteOptions
from index.changes import add_documents, compact_index, delete_documents, roll_back
from index.errors import BuildError
from index.filters import Filter
from index.manifest import IndexKind
from index.restoring import restore
from tests.conftest import random_gaussians
from tests.dictionary_model import Document, Gaussian, K, at_least, documents, gaussians, ids, require_best

Documents = dict[str, Document]

keeping = st.integers(2, 4)
"""How many generations a change keeps."""


def write(path: Path, wanted: Documents) -> Path:
    columns = {
        "id": [*wanted],
        "mean": pa.array([mean for (mean, _), _ in wanted.values()], pa.list_(pa.float32())),
        "variance": pa.array([variance for (_, variance), _ in wanted.values()], pa.list_(pa.float32())),
        "n": pa.array([n for _, n in wanted.values()], pa.int64()),
    }
    pq.write_table(pa.table(columns), path)
    return path


class IndexMachine(RuleBasedStateMachine):
    """An index, and the documents that must be in each of its generations."""

    folder: Path
    built: Documents
    names = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.own = self.folder / f"own{next(self.names)}"
        self.directory = IndexDirectory(shutil.copytree(self.folder / "built", self.own / "index"))
        self.history: dict[int, Documents] = {1: self.built}
        self.pinned: set[int] = set()
        self.backups: list[tuple[Path, int, Documents]] = []
        self.opened = [(LocalSearcher(self.directory, device="cpu"), self.built)]

    def teardown(self) -> None:
        for number in self.directory.generations():
            assert self.directory.verify(number).documents == len(self.history[number])
        shutil.rmtree(self.own)

    @property
    def generation(self) -> int:
        return max(self.history)

    @property
    def there(self) -> Documents:
        return self.history[self.generation]

    def path(self, name: str) -> Path:
        return self.own / f"{next(self.names)}{name}"

    def became(self, there: Documents, published: bool = True) -> None:
        """Notes what the live generation must hold, and looks at what is kept."""
        before, live = self.generation, self.directory.verify()
        assert live.documents == len(there)
        assert (live.generation > before) == published
        # What is due after a change publishes the same documents once more.
        self.history |= dict.fromkeys(range(before + 1, live.generation + 1), there)
        kept = set(self.directory.generations())
        assert kept >= {live.generation} | self.pinned
        assert not published or len(kept) >= 2
        assert kept <= self.history.keys()
        assert self.directory.pinned() == self.pinned

    @rule(wanted=documents, keep=keeping)
    def add(self, wanted: Documents, keep: int) -> None:
        options = AddOptions(device="cpu", keep_generations=keep)
        summary = add_documents([write(self.path(".parquet"), wanted)], self.directory, options)
        replaced = len(wanted.keys() & self.there.keys())
        assert (summary.written, summary.replaced) == (len(wanted), replaced)
        self.became({**self.there, **wanted})

    @rule(wanted=st.lists(ids, min_size=1, max_size=4), keep=keeping)
    def delete(self, wanted: list[str], keep: int) -> None:
        summary = delete_documents(wanted, self.directory, WriteOptions(keep_generations=keep))
        found = set(wanted) & self.there.keys()
        assert (summary.deleted, set(summary.missing)) == (len(found), set(wanted) - found)
        self.became({name: each for name, each in self.there.items() if name not in found}, bool(found))

    @rule(keep=keeping)
    def compact(self, keep: int) -> None:
        manifest = compact_index(self.directory, CompactOptions(device="cpu", keep_generations=keep))
        assert not manifest.documents or not any(entry.deletes for entry in manifest.segments)
        self.became(self.there, manifest.generation > self.generation)

    @rule(keep=keeping)
    def retrain(self, keep: int) -> None:
        options = CompactOptions(retrain=True, device="cpu", keep_generations=keep)
        if self.there:
            compact_index(self.directory, options)
            self.became(self.there)
        else:
            with pytest.raises(BuildError, match="holds no documents"):
                compact_index(self.directory, options)

    @rule(data=st.data(), keep=keeping)
    def go_back(self, data: st.DataObject, keep: int) -> None:
        number = data.draw(st.sampled_from(self.directory.generations()))
        roll_back(self.directory, number, WriteOptions(keep_generations=keep))
        self.became(self.history[number])

    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.directory.generations()))
        with self.directory.lock():
            self.directory.pin(number)
        self.pinned.add(number)
        self.became(self.there, False)

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.pinned)))
        with self.directory.lock():
            self.directory.unpin(number)
        self.pinned.remove(number)
        self.became(self.there, False)

    @rule(data=st.data(), name=st.sampled_from(["", ".tar", ".tar.zst"]))
    def back_up(self, data: st.DataObject, name: str) -> None:
        number, target = data.draw(st.sampled_from(self.directory.generations())), self.path(name)
        assert back_up(self.directory, target, number).generation == number
        self.backups.append((target, number, self.history[number]))
        self.became(self.there, False)

    @precondition(lambda self: self.backups)
    @rule(data=st.data(), keep=keeping, elsewhere=st.booleans())
    def restore(self, data: st.DataObject, keep: int, elsewhere: bool) -> None:
        """Into this index, or into a new one, which takes its place."""
        source, number, there = data.draw(st.sampled_from(self.backups))
        if elsewhere:
            self.directory = IndexDirectory(self.path("index"))
            assert restore(source, self.directory).generation == number
            self.history, self.pinned = {number: there}, set()
            self.became(there, False)
        else:
            restore(source, self.directory, WriteOptions(keep_generations=keep))
            # Its number is above that of the backup, too.
            self.history |= dict.fromkeys(range(self.generation + 1, self.directory.manifest().generation), there)
            self.became(there)

    @rule(data=st.data(), anew=st.booleans())
    def open(self, data: st.DataObject, anew: bool) -> None:
        """A searcher of any generation that is kept, which shares with another what both have, or does not."""
        number = data.draw(st.sampled_from(self.directory.generations()))
        known = None if anew else self.opened[-1][0]
        manifest = self.directory.generation(number)
        searcher = LocalSearcher(self.directory, device="cpu", manifest=manifest, known=known)
        self.opened = [*self.opened[-3:], (searcher, self.history[number])]

    @rule(query=gaussians, top_k=st.integers(1, 12), least=st.none() | st.integers(0, 6))
    def search(self, query: Gaussian, top_k: int, least: int | None) -> None:
        if self.opened[-1][0].manifest != self.directory.manifest():
            known = self.opened[-1][0]
            searcher = LocalSearcher(self.directory, device="cpu", known=known)
            self.opened = [*self.opened[-3:], (searcher, self.there)]
        self.require(*self.opened[-1], query, top_k, least)

    @rule(data=st.data(), query=gaussians, top_k=st.integers(1, 12), least=st.none() | st.integers(0, 6))
    def search_what_was(self, data: st.DataObject, query: Gaussian, top_k: int, least: int | None) -> None:
        """Whatever has been published since, and removed, a searcher finds what its generation holds."""
        searcher, there = self.opened[data.draw(st.integers(0, len(self.opened) - 1))]
        self.require(searcher, there, query, top_k, least)

    def require(
        self, searcher: LocalSearcher, there: Documents, query: Gaussian, top_k: int, least: int | None
    ) -> None:
        wanted = None if least is None else Filter.parse({"n": {"gte": least}})
        among = at_least(there, least)
        asked = Gaussians.from_arrays([query[0]], [query[1]])
        (ranking,) = searcher.search(asked, top_k, filter=wanted, exact=True)
        require_best(list(zip(ranking.ids, ranking.scores.tolist(), strict=True)), query, among, top_k)
        payloads = searcher.payloads(ranking.documents)
        assert [each.get("n") for each in payloads] == [there[name][1] for name in ranking.ids]
        (found,) = searcher.search(asked, top_k, filter=wanted)
        # Kinds with codes may miss some, and have the scores of what they find.
        assert set(found.ids) <= among.keys()
        assert len(found.ids) == len(ranking.ids)
        if searcher.manifest.kind is IndexKind.FLAT:
            assert (found.ids, found.scores.tolist()) == (ranking.ids, ranking.scores.tolist())


def few() -> Documents:
    return {"d0": (((0.0,) * K, (1.0,) * K), 0), "base": (((1.0,) * K, (0.5,) * K), None)}


def many() -> Documents:
    drawn = random_gaussians(300, K)
    pairs = zip(drawn.means.tolist(), drawn.variances.tolist(), strict=True)
    return {f"base{row}": ((tuple(mean), tuple(variance)), row % 7) for row, (mean, variance) in enumerate(pairs)}


@pytest.mark.parametrize(
    ("made", "kind", "examples"), [(few, IndexKind.FLAT, 60), (many, IndexKind.FASTSCAN, 6)], ids=["flat", "fastscan"]
)
def test_changes_in_any_order_give_what_a_dictionary_would(
    memory: Path, made: Callable[[], Documents], kind: IndexKind, examples: int
) -> None:
    IndexMachine.folder, IndexMachine.built = memory, made()
    options: dict[str, Any] = {"kind": kind, "segment_docs": 200 if kind is IndexKind.FASTSCAN else 6}
    directory = IndexDirectory(memory / "built")
    build_index([write(memory / "corpus.parquet", made())], directory, BuildOptions(device="cpu", **options))
    assert directory.manifest().kind is kind
    run_state_machine_as_test(
        IndexMachine,
        settings=settings(max_examples=examples, stateful_step_count=15, suppress_health_check=list(HealthCheck)),
    )
