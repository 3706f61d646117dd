"""Documents added, replaced and deleted, segments compacted and generations gone back to: what is found afterwards is
what float64 brute force finds in the documents that there should be."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import index.changes
import index.current
from index import BuildOptions, Gaussians, IndexDirectory, LocalSearcher, back_up, build_index, restore
from index.build_options import AddOptions, CompactOptions, WriteOptions
from index.changes import add_documents, compact_index, delete_documents, roll_back
from index.compaction import FANOUT, due_merges
from index.drift import rebuild_reason
from index.durable import write_atomically
from index.errors import (
    BuildError,
    CorruptIndexError,
    DocumentNotFoundError,
    DuplicateIdError,
    GenerationNotFoundError,
    IndexLockedError,
    IndexNotFoundError,
    SourceError,
)
from index.maintenance import merge_due
from index.manifest import IndexKind
from index.progress import SilentProgress
from index.writer import IndexWriter
from tests.conftest import random_gaussians, write_corpus
from tests.mirror import Mirror
from tests.rankings import ids_of

KINDS: dict[str, dict[str, Any]] = {
    "flat": {},
    "fastscan": {"kind": IndexKind.FASTSCAN},
    "ivf-fastscan": {"kind": IndexKind.IVF_FASTSCAN},
    "hnsw": {"kind": IndexKind.HNSW},
    "faiss": {"kind": IndexKind.FAISS, "factory": "IVF16,SQ8"},
}


class Changing:
    """An index in a folder, and its mirror; each change is made to both."""

    def __init__(self, folder: Path, k: int, documents: int, **options: Any) -> None:
        self.folder, self.mirror = folder, Mirror(k)
        self.directory = IndexDirectory(folder / "index")
        self.corpus = self.mirror.corpus(folder / "corpus.parquet", ids_of(documents), 1)
        self.options = BuildOptions(**options)
        build_index([self.corpus], self.directory, self.options)

    @property
    def generation(self) -> int | None:
        return self.directory.live_generation()

    def add(self, ids: Sequence[str], seed: int, *, center: float = 0.0, **options: Any) -> index.changes.ChangeSummary:
        corpus = self.mirror.corpus(self.folder / f"added-{seed}.parquet", ids, seed, center=center)
        return add_documents([corpus], self.directory, AddOptions(**options))

    def delete(self, ids: Sequence[str], **options: Any) -> index.changes.ChangeSummary:
        summary = delete_documents(ids, self.directory, WriteOptions(**options))
        self.mirror.delete(name for name in ids if name not in summary.missing)
        return summary

    def check(self) -> LocalSearcher:
        return self.mirror.check(self.directory)


@pytest.fixture
def small(tmp_path: Path) -> Changing:
    """60 documents, k = 4, flat, in segments of 20."""
    return Changing(tmp_path, 4, 60, segment_docs=20)


def left(directory: IndexDirectory) -> set[str]:
    """Everything that lies in the directory but for what every publication replaces."""
    return {
        str(path.relative_to(directory.path))
        for path in directory.path.rglob("*")
        if path.is_file() and path.name not in (".lock", "rejected.jsonl")
    }


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_index_of_every_kind_is_what_has_become_of_it(tmp_path: Path, kind: str) -> None:
    changing = Changing(tmp_path, 8, 2500, segment_docs=800, **KINDS[kind])
    built = changing.directory.manifest()
    assert built.kind == kind

    # New documents, and others in place of some that there are.
    summary = changing.add([*ids_of(2750)[2450:], "d7"], 2)
    assert (summary.written, summary.replaced) == (301, 51)
    manifest = changing.check().manifest
    # So many are worth measuring, which makes another generation.
    assert (manifest.generation, manifest.documents, manifest.changes, manifest.written) == (3, 2750, 1, 301)
    assert manifest.drift is not None
    assert (manifest.drift.documents, manifest.drift.queries, manifest.drift.due) == (301, 100, None)
    assert manifest.segments[: len(built.segments)] != built.segments
    assert [entry.id for entry in manifest.segments[:4]] == [entry.id for entry in built.segments]

    # Of the first and of the second lot, and one by one.
    summary = changing.delete([*ids_of(2600)[2300:2450], "d0", "nobody"])
    assert (summary.deleted, summary.missing) == (151, ["nobody"])
    manifest = changing.check().manifest
    assert (manifest.generation, manifest.documents, manifest.changes, manifest.written) == (4, 2599, 2, 301)

    # Deleted ones again, with other Gaussians.
    summary = changing.add(["d0", "d2301"], 3)
    assert (summary.written, summary.replaced) == (2, 0)
    changing.check()

    compacted = compact_index(changing.directory)
    manifest = changing.check().manifest
    assert manifest == compacted
    assert (manifest.generation, manifest.changes, manifest.written) == (6, 3, 303)
    assert not any(entry.deletes for entry in manifest.segments)
    assert [entry.documents for entry in manifest.segments] == [800, 800, 800, 201]
    assert manifest.codes is None or manifest.codes.structure is None or manifest.codes.structure.segments == 4
    assert compact_index(changing.directory) == compacted

    retrained = compact_index(changing.directory, CompactOptions(retrain=True))
    manifest = changing.check().manifest
    assert manifest == retrained
    assert (manifest.generation, manifest.changes, manifest.written, manifest.kind) == (7, 0, 0, kind)
    assert manifest.settings == built.settings
    assert manifest.source.files == built.source.files

    assert roll_back(changing.directory, 6).model_dump(exclude={"created_at", "generation", "restores"}) == (
        compacted.model_dump(exclude={"created_at", "generation", "restores"})
    )
    manifest = changing.check().manifest
    assert (manifest.generation, manifest.restores) == (8, 6)

    # What is gone back to can be changed as if nothing had been since.
    changing.add(["new"], 4)
    changing.delete(["d7"])
    assert changing.check().manifest.restores is None


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_index_that_has_lost_all_its_documents_takes_new_ones(tmp_path: Path, kind: str) -> None:
    changing = Changing(tmp_path, 8, 2500, segment_docs=800, **KINDS[kind])
    ids = list(changing.mirror.documents)
    assert changing.delete(ids).deleted == 2500
    searcher = changing.check()
    assert searcher.first_document() is None
    with pytest.raises(DocumentNotFoundError):
        searcher.document("d3")
    emptied = changing.directory.manifest()
    assert emptied.documents == 0
    assert compact_index(changing.directory) == emptied
    with pytest.raises(BuildError, match="holds no documents"):
        compact_index(changing.directory, CompactOptions(retrain=True))
    assert changing.delete(["d0"]).missing == ["d0"]
    assert changing.directory.manifest() == emptied
    summary = changing.add(ids[:40], 5)
    assert (summary.written, summary.replaced, summary.manifest.documents) == (40, 0, 40)
    changing.check()
    compact_index(changing.directory)
    assert [entry.documents for entry in changing.check().manifest.segments] == [40]


def test_ids_are_looked_up_in_parts(small: Changing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index.changes, "IDS_TOGETHER", 7)
    summary = small.add(ids_of(90)[30:], 2)
    assert (summary.written, summary.replaced) == (60, 30)
    small.check()


def test_a_document_replaced_over_and_over_is_there_once(small: Changing) -> None:
    for seed in range(2, 6):
        assert small.add(["d5"], seed).replaced == 1
        assert small.check().manifest.documents == 60


def test_deleting_what_there_is_not_publishes_nothing(small: Changing) -> None:
    before = left(small.directory)
    odd = ["\udc80 no text", "", "d1 ", "D1", "no", "no"]
    summary = small.delete(odd)
    assert summary.missing == odd[:-1]
    assert (summary.deleted, summary.manifest.generation, small.generation) == (0, 1, 1)
    assert left(small.directory) == before
    # One id is no sequence of ids.
    assert delete_documents("d12", small.directory).deleted == 1
    small.mirror.delete(["d12"])
    assert small.delete(["d12"]).missing == ["d12"]
    small.check()


def test_a_document_of_every_place_can_be_deleted(small: Changing) -> None:
    # One by one and many at once: both ways of looking ids up.
    for some in (["d0"], ["d19", "d20"], ids_of(60)[22:58], ["d59"]):
        assert small.delete(some).deleted == len(some)
        small.check()


def test_small_segments_are_merged_where_there_are_many(small: Changing) -> None:
    counts = []
    for number in range(2 * FANOUT):
        summary = small.add([f"new{number}"], 10 + number)
        counts.append(len(summary.manifest.segments))
        assert summary.manifest.generation == small.generation
    assert counts[FANOUT - 2 : FANOUT + 1] == [3 + FANOUT - 1, 3 + 1, 3 + 2]
    manifest = small.check().manifest
    assert max(counts) == 3 + FANOUT
    # A merge is no change of the documents.
    assert (manifest.changes, manifest.written) == (2 * FANOUT, 2 * FANOUT)
    assert due_merges(manifest) == []
    assert merge_due(small.directory) is None


def test_a_segment_that_is_mostly_deleted_is_written_anew(small: Changing) -> None:
    first = small.directory.manifest().segments[0].id
    small.delete(ids_of(10))
    assert small.directory.manifest().segments[0].id == first
    summary = small.delete(["d10"])
    assert summary.manifest.generation == small.generation == 4
    manifest = small.check().manifest
    assert [entry.documents for entry in manifest.segments] == [20, 20, 9]
    assert (manifest.documents, manifest.changes) == (49, 2)


def test_a_write_counts_though_segments_cannot_be_merged(small: Changing) -> None:
    damaged = small.directory.segments / small.directory.manifest().segments[0].id / "gaussians.npy"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-4] + b"\0\0\0\0")
    said: list[str] = []

    class Listening(SilentProgress):
        def phase(self, name: str, total: int | None) -> None:
            said.append(name)

    summary = delete_documents(ids_of(15), small.directory, progress=Listening())
    assert (summary.deleted, summary.manifest.generation, small.generation) == (15, 2, 2)
    assert [str(damaged) in each for each in said[-1:]] == [True]
    # Damage is not written anew under a checksum of its own.
    for compact in (merge_due, compact_index):
        with pytest.raises(CorruptIndexError, match=str(damaged)):
            compact(small.directory)
    with pytest.raises(CorruptIndexError, match=str(damaged)):
        compact_index(small.directory, CompactOptions(retrain=True))
    assert small.generation == 2
    damaged.write_bytes(whole)
    small.mirror.delete(ids_of(15))
    compact_index(small.directory)
    small.check()


def test_compacting_with_retrain_goes_on_where_it_was_stopped(small: Changing, monkeypatch: pytest.MonkeyPatch) -> None:
    small.add(["new1", "new2"], 2)
    small.delete(["d30"])
    before = small.directory.manifest()
    with monkeypatch.context() as patch:
        patch.setattr(index.build_work, "encode_segments", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compact_index(small.directory, CompactOptions(retrain=True))
    assert small.directory.manifest() == before
    (staged,) = small.directory.segments.glob("*-00000004-00000/gaussians.npy")
    written = staged.stat().st_mtime_ns
    compact_index(small.directory, CompactOptions(retrain=True))
    # The segments that had been read were not read again.
    assert staged.stat().st_mtime_ns == written
    assert small.check().manifest.generation == 4


def test_retraining_that_is_not_good_enough_publishes_nothing(tmp_path: Path) -> None:
    changing = Changing(tmp_path, 8, 2500, kind=IndexKind.FASTSCAN, code_bytes=1, candidates=10, target_recall=0.5)
    changing.add(["new"], 2)
    with pytest.raises(BuildError, match="recall"):
        compact_index(changing.directory, CompactOptions(retrain=True, min_recall=1.0))
    assert changing.generation == 2
    queries = write_corpus(tmp_path / "queries.parquet", random_gaussians(200, 8, 7))
    compact_index(changing.directory, CompactOptions(retrain=True, queries=queries))
    measured = changing.directory.manifest().measured_recall
    assert measured is not None
    assert measured.source == "queries"


@pytest.mark.parametrize("options", [{"restart": True}, {"min_recall": 0.5}, {"queries": Path("queries.parquet")}])
def test_what_is_for_retraining_is_refused_without_it(small: Changing, options: dict[str, Any]) -> None:
    with pytest.raises(BuildError, match="--retrain"):
        compact_index(small.directory, CompactOptions(**options))
    assert small.generation == 1


def test_a_generation_gone_back_to_is_checked_first(small: Changing) -> None:
    small.add(["new"], 2, keep_generations=5)
    roll_back(small.directory, 1, WriteOptions(keep_generations=5))
    small.mirror.delete(["new"])
    small.check()
    (segment,) = {entry.id for entry in small.directory.generation(2).segments} - {
        entry.id for entry in small.directory.generation(1).segments
    }
    damaged = small.directory.segments / segment / "payload.arrow"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(CorruptIndexError, match=str(damaged)):
        roll_back(small.directory, 2)
    assert small.generation == 3
    with pytest.raises(GenerationNotFoundError, match=r"keeps no generation 7; it keeps 1, 2, 3$"):
        roll_back(small.directory, 7)
    small.check()


def test_a_damaged_current_file_is_remedied_by_going_back(small: Changing) -> None:
    small.delete(["d1"])
    small.directory.current_file.write_bytes(b"\0" * 70)
    with pytest.raises(CorruptIndexError):
        small.directory.manifest()
    assert roll_back(small.directory, 2).generation == 3
    small.check()


def test_a_generation_that_was_never_live_is_none(small: Changing, monkeypatch: pytest.MonkeyPatch) -> None:
    def die_before_current(path: Path, data: bytes) -> None:
        if path.name == "CURRENT":
            raise KeyboardInterrupt
        write_atomically(path, data)

    small.delete(["d1"])
    with monkeypatch.context() as patch:
        patch.setattr(index.current, "write_atomically", die_before_current)
        # As SIGKILL leaves it: nothing is tidied up.
        patch.setattr(IndexWriter, "_clear_away", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            delete_documents(["d2"], small.directory)
    assert (small.directory.manifests / "00000003.blake3").exists()
    assert small.directory.generations() == [1, 2]
    with pytest.raises(GenerationNotFoundError):
        roll_back(small.directory, 3)
    # Nor does it cost one that was its place.
    small.delete(["d3"])
    assert small.directory.generations() == [2, 4]
    assert len(small.check()) == 58


def test_a_build_of_the_same_corpus_is_no_longer_up_to_date(small: Changing) -> None:
    def build() -> bool:
        return build_index([small.corpus], small.directory, small.options).up_to_date

    assert build()
    compact_index(small.directory)
    assert build()
    small.delete(["d1"])
    assert not build()
    assert (small.generation, len(LocalSearcher(small.directory))) == (3, 60)
    assert build()
    compact_index(small.directory, CompactOptions(retrain=True))
    assert not build()
    # Gone back to what the build made, it is.
    delete_documents(["d1"], small.directory)
    roll_back(small.directory, small.directory.generations()[-2])
    assert build()


def drifting(folder: Path, **options: Any) -> Changing:
    """An index and 400 documents of another distribution than those that it was built of."""
    changing = Changing(folder, 8, 2500, segment_docs=5000, **options)
    assert rebuild_reason(changing.directory.manifest()) is None
    return changing


def strange(folder: Path, ids: Sequence[str]) -> Path:
    """Documents that lie along a direction in which those of the build do not vary."""
    rng = np.random.default_rng(8)
    means = 40 + 1e-2 * rng.normal(size=(len(ids), 8))
    variances = 1e-4 * rng.gamma(4.0, 0.25, size=(len(ids), 8)) + 1e-6
    return write_corpus(folder / "strange.parquet", Gaussians.from_arrays(means, variances), ids, text=[""] * len(ids))


def test_documents_of_another_distribution_make_a_rebuild_due(tmp_path: Path) -> None:
    changing = drifting(tmp_path, kind=IndexKind.FASTSCAN)
    same = changing.add([f"same{row}" for row in range(400)], 2).manifest
    assert same.drift is not None
    assert (same.drift.queries, same.drift.documents, same.drift.due) == (100, 400, None)
    assert same.drift.recall >= 0.95
    assert rebuild_reason(same) is None
    # Few more are not worth measuring again.
    assert changing.add(["few"], 3).manifest.drift == same.drift
    ids = [f"strange{row}" for row in range(400)]
    other = add_documents([strange(tmp_path, ids)], changing.directory).manifest
    assert other.drift is not None
    assert other.drift.documents == 801
    assert other.drift.recall < 0.9
    reason = rebuild_reason(other)
    assert reason is not None
    assert "compact --retrain" in reason
    # What it asks for helps.
    retrained = compact_index(changing.directory, CompactOptions(retrain=True))
    assert retrained.drift is None
    assert rebuild_reason(retrained) is None


def test_a_flat_index_whose_scan_proves_little_is_due(tmp_path: Path) -> None:
    changing = drifting(tmp_path)
    assert rebuild_reason(changing.add([f"same{row}" for row in range(400)], 2).manifest) is None
    far = random_gaussians(400, 8, 3, center=1e4, deviation=1e-3)
    corpus = write_corpus(tmp_path / "far.parquet", far, [f"far{row}" for row in range(400)], text=[""] * 400)
    other = add_documents([corpus], changing.directory).manifest
    assert other.drift is not None
    assert other.drift.recall < 0.9
    assert "are proved by the first scan" in str(rebuild_reason(other))
    retrained = compact_index(changing.directory, CompactOptions(retrain=True))
    assert rebuild_reason(retrained) is None


@pytest.mark.parametrize(("kind", "said"), [("hnsw", "graph links"), ("ivf-fastscan", "lists hold")])
def test_many_documents_outside_of_a_structure_make_compaction_due(tmp_path: Path, kind: str, said: str) -> None:
    changing = Changing(tmp_path, 8, 2500, segment_docs=2500, **KINDS[kind])
    assert rebuild_reason(changing.add(ids_of(2500 + 1250)[2500:], 2).manifest) is None
    reason = rebuild_reason(changing.add(["one more"], 3).manifest)
    assert reason is not None
    assert said in reason
    assert "compact the index" in reason
    assert rebuild_reason(compact_index(changing.directory)) is None
    changing.check()


# What cannot be added, and what that leaves.

Refusal = tuple[Callable[[Path], list[Path]], type[Exception], str]


def one_file(**table: Any) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        columns = {"id": ["a", "b"], "mean": [[0.0] * 4] * 2, "variance": [[1.0] * 4] * 2, "text": ["", ""], **table}
        pq.write_table(pa.table(columns), folder / "bad.parquet")
        return [folder / "bad.parquet"]

    return write


def twice(folder: Path) -> list[Path]:
    return [
        write_corpus(folder / f"{name}.parquet", random_gaussians(2, 4), ["x", f"only in {name}"], text=["", ""])
        for name in ("one", "two")
    ]


def no_rows(folder: Path) -> list[Path]:
    (folder / "empty.jsonl").write_text("\n\n")
    return [folder / "empty.jsonl"]


ANOTHER_K = r"row 0, column 'mean': it has 5 components; the index has k = 4 \(.*\)\. (?!.*skip).*all have its k"

REFUSED: dict[str, Refusal] = {
    "another k": (one_file(mean=[[0.0] * 5] * 2, variance=[[1.0] * 5] * 2), SourceError, ANOTHER_K),
    "a payload column of another type": (one_file(text=[1, 2]), SourceError, r"bad\.parquet: the payload columns have"),
    "a document that float32 cannot hold": (
        one_file(mean=[[0.0] * 4, [1e38] * 4], variance=[[1.0] * 4, [1e-30] * 4]),
        SourceError,
        r"bad\.parquet row 1, document 'b': .*Correct the row, or leave it out",
    ),
    "a variance of 0": (
        one_file(variance=[[1.0] * 4, [0.0] * 4]),
        SourceError,
        r"bad\.parquet row 1, column 'variance'",
    ),
    "one id in two files": (twice, DuplicateIdError, r"'x' at .*one\.parquet row 0 and .*two\.parquet row 0"),
    "one id twice": (one_file(id=["x", "x"]), DuplicateIdError, r"'x' at .*row 0 and .*row 1"),
    "no documents": (no_rows, SourceError, r"there are no documents in .*empty\.jsonl"),
    "no file": (lambda folder: [folder / "nowhere.parquet"], SourceError, "nowhere.parquet: there is no such file"),
    "the index itself": (lambda folder: [folder / "index"], SourceError, "no corpus was named outside of"),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_cannot_be_added_changes_nothing(small: Changing, tmp_path: Path, what: str) -> None:
    make, error, said = REFUSED[what]
    before = left(small.directory)
    with pytest.raises(error, match=said):
        add_documents(make(tmp_path), small.directory)
    assert left(small.directory) == before
    small.check()
    assert small.add(["good"], 2).manifest.generation == 2


def test_sources_that_change_while_they_are_read_are_refused(small: Changing, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = small.folder / "changing.parquet"
    add = IndexWriter.add

    def change_and_add(writer: IndexWriter, batch: Any) -> None:
        write_corpus(corpus, random_gaussians(9, 4, 5))
        add(writer, batch)

    write_corpus(corpus, random_gaussians(3, 4, 4))
    with monkeypatch.context() as patch:
        patch.setattr(IndexWriter, "add", change_and_add)
        with pytest.raises(SourceError, match="changed while they were read"):
            add_documents([corpus], small.directory)
    small.check()


def test_payload_columns_may_come_and_go_and_be_wider(small: Changing, tmp_path: Path) -> None:
    def add(name: str, **payload: Any) -> None:
        corpus = write_corpus(tmp_path / f"{name}.parquet", random_gaussians(1, 4, 3), [name], **payload)
        add_documents([corpus], small.directory)

    add("whole", year=[1999])
    add("half", year=[1999.5], place=[None])
    add("placed", place=["Athens"])
    add("none")
    with pytest.raises(SourceError, match="place"):
        add("wrong", place=[3])

    def payloads() -> list[dict[str, Any]]:
        searcher = LocalSearcher(small.directory)
        return [searcher.document(name).payload for name in ("d0", "whole", "half", "placed", "none")]

    def known(payload: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in payload.items() if value is not None}

    expected = [{"text": "d0 of 1"}, {"year": 1999}, {"year": 1999.5}, {"place": "Athens"}, {}]
    assert [known(each) for each in payloads()] == expected
    compact_index(small.directory)
    assert [known(each) for each in payloads()] == expected


def test_columns_whose_types_do_not_go_together_stay_in_segments_of_their_own(tmp_path: Path) -> None:
    # A build checks types within a segment; so an index may have a column of two types, and must not die of it.
    directory = IndexDirectory(tmp_path / "index")
    one = write_corpus(tmp_path / "one.parquet", random_gaussians(4, 3), ids_of(4), text=list("abcd"))
    two = write_corpus(tmp_path / "two.parquet", random_gaussians(4, 3, 1), ids_of(8)[4:], text=[1, 2, 3, 4])
    build_index([one, two], directory, BuildOptions(segment_docs=4))
    summary = delete_documents(["d0", "d1", "d2", "d5", "d6", "d7"], directory)
    assert (summary.deleted, directory.verify().documents) == (6, 2)
    with pytest.raises(SourceError, match="payload columns"):
        compact_index(directory)
    searcher = LocalSearcher(directory)
    assert [searcher.document(name).payload["text"] for name in ("d3", "d4")] == ["d", 1]


def test_rows_that_are_left_out_are_counted_and_listed(small: Changing, tmp_path: Path) -> None:
    corpus = tmp_path / "new.jsonl"
    good = [{"id": f"new{row}", "mean": [0.1 * row] * 4, "variance": [1.0] * 4, "text": ""} for row in range(3)]
    lines = [good[0], {**good[1], "variance": [0.0] * 4}, good[2], {**good[1], "id": ""}]
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SourceError, match=r"new\.jsonl line 2"):
        add_documents([corpus], small.directory)
    for _ in range(2):
        summary = add_documents([corpus], small.directory, AddOptions(on_error="skip"))
        assert (summary.written, summary.rejected) == (2, 2)
        listed = [json.loads(line) for line in (small.directory.path / "rejected.jsonl").read_text().splitlines()]
        assert [(line["row"], line["column"]) for line in listed] == [(2, "variance"), (4, "id")]
    assert summary.replaced == 2
    elsewhere = tmp_path / "left out.jsonl"
    add_documents([corpus], small.directory, AddOptions(on_error="skip", rejected_to=elsewhere))
    assert len(elsewhere.read_text().splitlines()) == 2
    assert small.directory.verify().documents == 62


def test_rows_are_never_listed_in_a_source(small: Changing, tmp_path: Path) -> None:
    corpus = tmp_path / "precious.jsonl"
    corpus.write_text(json.dumps({"id": "new", "mean": [0.0] * 4, "variance": [1.0] * 4}) + "\n")
    before = corpus.read_bytes()
    for on_error in ("stop", "skip"):
        with pytest.raises(BuildError, match="is one of the sources"):
            add_documents([corpus], small.directory, AddOptions(on_error=on_error, rejected_to=corpus))
    assert corpus.read_bytes() == before


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_where_there_is_no_index_none_is_begun(small: Changing, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    directory = IndexDirectory(tmp_path / name)
    for change in (
        lambda: add_documents([small.corpus], directory),
        lambda: delete_documents(["d1"], directory),
        lambda: merge_due(directory),
        lambda: compact_index(directory),
        lambda: compact_index(directory, CompactOptions(retrain=True)),
        lambda: roll_back(directory, 1),
    ):
        with pytest.raises(IndexNotFoundError, match=f"no index in {directory.path}"):
            change()
    assert not (tmp_path / "nowhere").exists()
    assert not list((tmp_path / "empty").iterdir())


def test_one_writes_at_a_time(small: Changing) -> None:
    with small.directory.lock():
        for change in (
            lambda: add_documents([small.corpus], small.directory),
            lambda: delete_documents(["d1"], small.directory),
            lambda: compact_index(small.directory),
            lambda: compact_index(small.directory, CompactOptions(retrain=True)),
            lambda: roll_back(small.directory, 1),
        ):
            with pytest.raises(IndexLockedError, match="--wait SECONDS"):
                change()
        with pytest.raises(IndexLockedError, match=r"has not finished within 0\.05 seconds"):
            delete_documents(["d1"], small.directory, WriteOptions(wait=0.05))
    assert small.generation == 1
    small.delete(["d1"])
    small.check()


def test_a_reader_keeps_its_generation(small: Changing) -> None:
    searcher = LocalSearcher(small.directory)
    frozen = Mirror(4)
    frozen.documents = dict(small.mirror.documents)
    copied = IndexDirectory(shutil.copytree(small.directory.path, small.folder / "copy"))
    small.add(["d3", "new"], 2)
    small.delete(ids_of(40))
    compact_index(small.directory)
    compact_index(small.directory, CompactOptions(retrain=True))
    assert small.directory.generations() == [4, 5]
    queries = random_gaussians(20, 4, 99)
    before = frozen.check(copied).search(queries, 10)
    assert [ranking.ids for ranking in searcher.search(queries, 10)] == [ranking.ids for ranking in before]
    small.check()


@pytest.mark.parametrize("kind", [str, Path])
def test_an_index_may_be_named_by_its_path(tmp_path: Path, kind: Callable[[Path], str | Path]) -> None:
    where, other = kind(tmp_path / "index"), kind(tmp_path / "other")
    build_index([write_corpus(tmp_path / "a.parquet", random_gaussians(9, 2))], where)
    new = write_corpus(tmp_path / "b.parquet", random_gaussians(2, 2), ["n1", "n2"])
    assert add_documents([new], where).written == 2
    assert delete_documents(["d0"], where).deleted == 1
    assert compact_index(where).generation == 4
    assert compact_index(where, CompactOptions(retrain=True)).generation == 5
    assert roll_back(where, 4).restores == 4
    assert back_up(where, tmp_path / "backup").documents == 10
    assert restore(tmp_path / "backup", other).documents == 10
    assert len(LocalSearcher(where)) == len(LocalSearcher(other)) == 10


@pytest.mark.parametrize("wrong", [[1, 2], ["d0", 1], [None], [b"d0"], [["d0"]], [[], "d0"]])
def test_ids_that_are_no_strings_are_refused_before_anything_is_deleted(small: Changing, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"the id of a document must be a string, not (int|NoneType|bytes|list): "):
        delete_documents(wrong, small.directory)
    assert small.directory.live_generation() == 1
