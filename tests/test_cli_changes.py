"""The commands that change an index, run as programs are run."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from index import IndexDirectory, LocalSearcher
from index.errors import CorruptIndexError
from index.generation_files import open_segments
from index.holding import held
from index.layout import Layout
from index.manifest import Manifest
from index.segments import Segment
from service.cli import app
from service.generation_commands import print_generations
from service.progress import LineProgress
from tests.conftest import MakeIndex, random_gaussians, write_corpus
from tests.serving import PATIENCE


def run(*arguments: object, **options: Any) -> Result:
    options["env"] = {"COLUMNS": "200", **(options.get("env") or {})}
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


@pytest.fixture
def directory(make_index: MakeIndex) -> IndexDirectory:
    return make_index(random_gaussians(20, 3), segment_docs=10, tag=["old"] * 20)


def test_documents_are_added_in_place_of_those_with_their_ids(directory: IndexDirectory, tmp_path: Path) -> None:
    new = random_gaussians(3, 3, seed=1)
    corpus = write_corpus(tmp_path / "new.parquet", new, ["d4", "n1", "n2"], tag=["new"] * 3)
    result = run("add", corpus, "--index", directory.path)
    assert result.exit_code == 0, result.output
    assert "3, 1 in place of another" in result.stdout
    searcher = LocalSearcher(directory)
    assert len(searcher) == 22
    for row, name in enumerate(["d4", "n1", "n2"]):
        assert searcher.search(new[row : row + 1], 1)[0].ids == [name]
    assert searcher.document("d4").payload == {"tag": "new"}
    shown = run("inspect", "--index", directory.path).stdout
    assert "1 since the build, 3 documents written" in shown
    assert "1, which gaussearch compact clears away" in shown


def test_documents_are_deleted_by_ids_on_the_line_or_in_a_file(directory: IndexDirectory, tmp_path: Path) -> None:
    result = run("delete", "--index", directory.path, "--ids", "d1", "--ids", "nobody")
    assert result.exit_code == 0, result.output
    assert "1: 'nobody'" in result.stdout
    (tmp_path / "ids.txt").write_text("d2\n\nd3\n")
    assert run("delete", "--index", directory.path, "--ids-file", tmp_path / "ids.txt").exit_code == 0
    assert run("delete", "--index", directory.path, "--ids-file", "-", input="d4\nd5\n").exit_code == 0
    assert len(LocalSearcher(directory)) == 15
    generation = directory.live_generation()
    again = run("delete", "--index", directory.path, "--ids", "d1")
    assert "nothing to delete" in again.stdout
    assert directory.live_generation() == generation
    assert run("delete", "--index", directory.path).exit_code == 2


def test_ids_that_a_comma_parts_are_told_where_they_are_there(make_index: MakeIndex) -> None:
    directory = make_index(random_gaussians(4, 3), ["a", "b c", "d,e", "gone"])

    def said(*ids: str) -> str:
        result = run("delete", "--index", directory.path, *(part for each in ids for part in ("--ids", each)))
        assert result.exit_code == 0, result.output
        return result.stderr

    assert run("delete", "--index", directory.path, "--ids", "gone").exit_code == 0
    for missing in ("a,nobody", "a,", ",", "a,gone", "nobody"):
        assert said(missing) == ""
    hint = "'a, b c' is one id, which is not there, and what its commas part is: --ids a --ids 'b c'\n"
    assert said("a, b c", "nobody") == hint
    assert said("d,e") == ""
    assert directory.manifest().documents == 2


def test_a_hint_opens_the_index_once_holds_it_and_fails_no_deletion(
    make_index: MakeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_index(random_gaussians(4, 3), ["a", "b", "c", "d"])
    opened: list[set[int]] = []
    errors: list[Exception] = []

    def opening(layout: Layout, manifest: Manifest, *, verify: bool) -> list[Segment]:
        opened.append(held(layout.pins))
        if errors:
            raise errors.pop()
        return open_segments(layout, manifest, verify=verify)

    monkeypatch.setattr("service.write_commands.open_segments", opening)

    def said(*ids: str) -> str:
        result = run("delete", "--index", directory.path, *(part for each in ids for part in ("--ids", each)))
        assert result.exit_code == 0, result.output
        return result.stderr

    assert said("nobody", "no one") == ""
    assert opened == []
    assert len(said("a,b", "a, b", "a,nobody", "b,a").splitlines()) == 3
    assert opened == [{1}]
    for error in (OSError(24, "Too many open files"), CorruptIndexError("damaged")):
        errors.append(error)
        assert said("c" if isinstance(error, OSError) else "d", "a,b") == ""
    assert opened == [{1}, {2}, {3}]
    assert directory.manifest().documents == 2


def test_several_ids_follow_one_option(directory: IndexDirectory, tmp_path: Path) -> None:
    result = run("delete", "--ids", "d1", "d2", "nobody", "--index", directory.path, "--ids", "d3", "d4")
    assert result.exit_code == 0, result.output
    assert re.search(r"deleted \W+4\W", result.stdout)
    assert "1: 'nobody'" in result.stdout
    assert len(LocalSearcher(directory)) == 16
    (tmp_path / "ids.txt").write_text("d5 d6\n")
    for arguments in (["d5"], ["d5", "d6"], ["--ids-file", tmp_path / "ids.txt", "d6"]):
        refused = run("delete", "--index", directory.path, *arguments)
        assert (refused.exit_code, "does not follow --ids: give --ids d" in refused.stderr) == (2, True)
    assert "1: 'd5 d6'" in run("delete", "--index", directory.path, "--ids-file", tmp_path / "ids.txt").stdout
    assert len(LocalSearcher(directory)) == 16


def test_compact_rollback_and_the_list_of_generations(directory: IndexDirectory) -> None:
    assert run("generations", "--index", directory.path, "--pin", 1).exit_code == 0
    assert run("delete", "--index", directory.path, "--ids", "d1").exit_code == 0
    assert run("compact", "--index", directory.path).exit_code == 0
    assert run("compact", "--index", directory.path, "--retrain").exit_code == 0
    listed = json.loads(run("generations", "--index", directory.path, "--format", "json").stdout)
    assert (listed[0]["generation"], listed[0]["documents"]) == (1, 20)
    assert [each["pinned"] for each in listed] == [True, *[False] * (len(listed) - 1)]
    assert [each["live"] for each in listed] == [*[False] * (len(listed) - 1), True]
    assert run("rollback", 1, "--index", directory.path).exit_code == 0
    assert len(LocalSearcher(directory)) == 20
    missing = run("rollback", 77, "--index", directory.path)
    assert missing.exit_code == 1
    assert "[generation_not_found]" in missing.stderr
    assert run("generations", "--index", directory.path, "--unpin", 1).exit_code == 0
    assert directory.pinned() == set()


@pytest.mark.parametrize("name", ["copy", "copy.tar", "copy.tar.gz", "copy.tar.zst"])
def test_a_backup_is_restored_as_it_was(directory: IndexDirectory, tmp_path: Path, name: str) -> None:
    query = random_gaussians(1, 3, seed=4)
    before = LocalSearcher(directory).search(query, 20)[0]
    assert run("backup", tmp_path / name, "--index", directory.path).exit_code == 0
    assert run("backup", tmp_path / name, "--index", directory.path).exit_code == 1
    assert run("delete", "--index", directory.path, "--ids", before.ids[0]).exit_code == 0
    for restored in (directory.path, tmp_path / "elsewhere"):
        result = run("restore", tmp_path / name, "--index", restored)
        assert result.exit_code == 0, result.output
        after = LocalSearcher(IndexDirectory(restored)).search(query, 20)[0]
        assert (after.ids, after.scores.tolist()) == (before.ids, before.scores.tolist())


HOLD = """
import sys
from index import IndexDirectory
with IndexDirectory(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_fails_or_waits_and_a_dead_one_holds_nothing(directory: IndexDirectory) -> None:
    command = [sys.executable, "-c", HOLD, str(directory.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        refused = run("delete", "--index", directory.path, "--ids", "d1")
        waited = run("delete", "--index", directory.path, "--ids", "d1", "--wait", "0.01")
        holder.kill()
    assert refused.exit_code == 1
    assert "[index_locked]" in refused.stderr
    assert "--wait" in refused.stderr
    assert "has not finished within 0.01 seconds" in waited.stderr
    assert run("delete", "--index", directory.path, "--ids", "d1", "--wait", str(PATIENCE)).exit_code == 0
    assert len(LocalSearcher(directory)) == 19


def test_rows_that_are_left_out_are_counted_and_a_rebuild_that_is_due_is_named(
    directory: IndexDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "new.jsonl"
    good = {"id": "new", "mean": [0.0] * 3, "variance": [1.0] * 3, "tag": "new"}
    corpus.write_text(f"{json.dumps(good)}\n{json.dumps({**good, 'variance': [0.0] * 3})}\n")
    stopped = run("add", corpus, "--index", directory.path)
    assert (stopped.exit_code, "new.jsonl line 2" in stopped.stderr) == (1, True)
    assert "--on-error skip" in stopped.stderr
    monkeypatch.setattr("service.write_commands.rebuild_reason", lambda _: "it is due: compact it")
    result = run("add", corpus, "--index", directory.path, env={"GAUSSEARCH_ON_ERROR": "skip"})
    assert result.exit_code == 0, result.output
    listed = re.escape(f"1, listed in {directory.path / 'rejected.jsonl'}")
    for name, value in (("rejected rows", listed), ("rebuild", "it is due: compact it")):
        assert re.search(rf"{name}\W+{value}", result.stdout)
    assert len((directory.path / "rejected.jsonl").read_text().splitlines()) == 1


def test_adding_rows_that_are_all_left_out_says_so(directory: IndexDirectory, tmp_path: Path) -> None:
    corpus, listed = tmp_path / "new.jsonl", tmp_path / "left out.jsonl"
    corpus.write_text(json.dumps({"docid": "a", "mean": [0.0] * 3, "variance": [1.0] * 3}) + "\n")
    options = ("--on-error", "skip", "--rejected-to", listed)
    result = run("add", corpus, "--index", directory.path, *options)
    assert result.exit_code == 1
    said = f"the only row of {corpus} was left out"
    assert f"{said}, which {listed} lists. The first: {corpus} line 1: there is no column 'id'" in result.stderr
    assert json.loads(listed.read_text())["reason"] == "it is missing"
    assert run("add", corpus, "--index", directory.path, "--id-column", "docid").exit_code == 0


def test_ids_of_a_file_are_lines_and_nothing_else(make_index: MakeIndex, tmp_path: Path) -> None:
    odd = ["a b", " c", "d\u2028e", "f\x0bg", "h\x85i", "雪", '"q"', "-1"]
    directory = make_index(random_gaussians(len(odd) + 1, 3), [*odd, "last"])
    listed = tmp_path / "ids.txt"
    listed.write_bytes("\ufeff".encode() + "\r\n".join([*odd[:4], "", *odd[4:]]).encode())
    result = run("delete", "--index", directory.path, "--ids-file", listed)
    assert result.exit_code == 0, result.output
    assert directory.manifest().documents == 1
    listed.write_bytes(b"last\n\xff\n")
    refused = run("delete", "--index", directory.path, "--ids-file", listed)
    assert (refused.exit_code, "ids.txt line 2: it is not UTF-8" in refused.stderr) == (1, True)
    missing = run("delete", "--index", directory.path, "--ids-file", tmp_path / "nowhere")
    said = f"gaussearch: --ids-file: {tmp_path / 'nowhere'} does not exist [bad_source]\n"
    assert (missing.exit_code, missing.stderr) == (1, said)
    assert directory.manifest().documents == 1
    assert run("delete", "--index", directory.path, "--ids-file", "-", input=b"last").exit_code == 0
    # An index without documents is one like any other.
    for command in ("inspect", "verify", "generations", "compact"):
        shown = run(command, "--index", directory.path)
        assert shown.exit_code == 0, shown.output
    assert "nothing to compact" in shown.stdout


def test_many_missing_ids_are_counted_and_a_few_named(directory: IndexDirectory) -> None:
    result = run("delete", "--index", directory.path, *(part for row in range(30) for part in ("--ids", f"no{row}")))
    assert result.exit_code == 0
    assert "30: 'no0', 'no1', 'no2', 'no3', 'no4', ..." in " ".join(result.stdout.split())


def test_generations_are_listed_though_one_is_damaged(directory: IndexDirectory) -> None:
    for row in range(3):
        assert run("delete", "--index", directory.path, "--ids", f"d{row}", "--keep-generations", 9).exit_code == 0
    damaged = directory.manifests / "00000002.json"
    damaged.write_bytes(b"{}")
    listed = json.loads(run("generations", "--index", directory.path, "--format", "json").stdout)
    assert [each["generation"] for each in listed] == [1, 2, 3, 4]
    assert [each["generation"] for each in listed if "error" in each] == [2]
    assert [each["live"] for each in listed] == [False, False, False, True]
    assert str(damaged) in listed[1]["error"]
    assert listed[3] | {"created": None, "bytes": 0} == {
        "generation": 4,
        "live": True,
        "pinned": False,
        "restores": None,
        "created": None,
        "documents": 17,
        "kind": "flat",
        "changes": 3,
        "bytes": 0,
    }
    shown = run("generations", "--index", directory.path, env={"COLUMNS": "80"}).stdout
    assert f"\ngeneration 2 cannot be read: {damaged}" in shown
    assert re.search(r"2\W+damaged\W", shown)
    assert re.search(r"4\W+[0-9-]{10} [0-9:]{5}\W+17\W+3\W+\S+ kB\W+live\W", shown)
    refused = run("rollback", 2, "--index", directory.path)
    assert (refused.exit_code, str(damaged) in refused.stderr) == (1, True)
    # Where what is damaged says which one is live, the others are there to go back to.
    directory.current_file.write_text("nonsense")
    listed = json.loads(run("generations", "--index", directory.path, "--format", "json").stdout)
    assert [each["live"] for each in listed] == [False] * 4
    assert run("rollback", 3, "--index", directory.path).exit_code == 0
    assert run("inspect", "--index", directory.path).exit_code == 0


def test_of_a_generation_that_is_gone_it_is_said_which_one_restores_it(directory: IndexDirectory) -> None:
    for row in range(2):
        assert run("delete", "--index", directory.path, "--ids", f"d{row}").exit_code == 0
    assert run("rollback", 2, "--index", directory.path).exit_code == 0
    assert directory.generations() == [3, 4]
    for arguments in (["generations", "--pin", 2], ["rollback", 2], ["verify", "--generation", 2]):
        refused = run(*arguments, "--index", directory.path)
        assert refused.exit_code == 1
        assert "keeps no generation 2; it keeps 3, 4, of which 4 restores it [generation_not_found]" in refused.stderr
    # Of one that is damaged nothing is known, and it is in nobody's way.
    (directory.manifests / "00000004.json").write_bytes(b"{}")
    refused = run("generations", "--pin", 2, "--index", directory.path)
    assert "it keeps 3, 4 [generation_not_found]" in refused.stderr


def test_a_terminal_of_80_columns_shows_generations_whole(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "generation": 12_345_678,
        "live": True,
        "pinned": True,
        "restores": 12_345_677,
        "created": "2026-11-26T12:00:59.123+02:00",
        "documents": 120_000_000,
        "kind": "ivf-fastscan",
        "changes": 98_765,
        "bytes": 123_456_789_012,
    }
    for width in ("80", "40"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", width)
            print_generations("index", [row, {**row, "restores": None, "pinned": False, "bytes": 999}])
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= int(width)
        assert "…" not in "".join(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        print_generations("index", [row])
    shown = capsys.readouterr().out
    for value in ("12345678 ", "2026-11-26 10:00", "120,000,000", "98,765", "123.5 GB", "live,", "pinned,", "12345677"):
        assert value in shown


def test_a_generation_is_verified_and_backed_up_by_its_number(directory: IndexDirectory, tmp_path: Path) -> None:
    assert run("delete", "--index", directory.path, "--ids", "d1").exit_code == 0
    assert "generation 1 is intact: 20 documents" in run("verify", "--index", directory.path, "--generation", 1).stdout
    assert "generation 2 is intact: 19 documents" in run("verify", "--index", directory.path).stdout
    (deletes,) = directory.deletes.iterdir()
    deletes.write_bytes(b"")
    assert run("verify", "--index", directory.path, "--generation", 1).exit_code == 0
    found = run("verify", "--index", directory.path)
    assert (found.exit_code, str(deletes) in found.stderr) == (1, True)
    assert run("backup", tmp_path / "second.tar", "--index", directory.path).exit_code == 1
    assert run("backup", tmp_path / "first.tar", "--index", directory.path, "--generation", 1).exit_code == 0
    assert run("restore", tmp_path / "first.tar", "--index", tmp_path / "restored").exit_code == 0
    assert IndexDirectory(tmp_path / "restored").verify().generation == 1
    for arguments in (
        ["verify", "--generation", 7],
        ["backup", tmp_path / "x.tar", "--generation", 7],
        ["rollback", 7],
    ):
        missing = run(*arguments, "--index", directory.path)
        assert (missing.exit_code, "[generation_not_found]" in missing.stderr) == (1, True)


def test_commands_end_with_a_message_where_there_is_no_index(directory: IndexDirectory, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    for arguments in (
        ["add", tmp_path / "index.parquet"],
        ["delete", "--ids", "d1"],
        ["compact"],
        ["compact", "--retrain"],
        ["generations"],
        ["generations", "--pin", 1],
        ["rollback", 1],
        ["backup", tmp_path / "backup.tar"],
        ["verify", "--generation", 1],
    ):
        result = run(*arguments, "--index", nowhere)
        assert (result.exit_code, "[index_not_found]" in result.stderr) == (1, True), arguments
    refused = run("restore", tmp_path / "no backup", "--index", nowhere)
    assert (refused.exit_code, "[backup_failed]" in refused.stderr) == (1, True)
    assert not nowhere.exists()
    assert not (tmp_path / "backup.tar").exists()
    for arguments in (
        ["delete", "--index", directory.path, "--ids", "a", "--ids-file", "b"],
        ["delete", "--index", directory.path, "--ids", "a", "--keep-generations", 1],
        ["delete", "--index", directory.path, "--ids", "a", "--wait", -1],
        ["generations", "--index", directory.path, "--format", "xml"],
        ["rollback", "--index", directory.path],
        ["rollback", "first", "--index", directory.path],
    ):
        assert run(*arguments).exit_code == 2, arguments


class Stopping(LineProgress):
    """Is told to end by a signal when a phase begins."""

    number = signal.SIGTERM
    at = "encoding"

    def phase(self, name: str, total: int | None) -> None:
        if name == self.at:
            signal.raise_signal(self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_commands_end_with_130_and_leave_the_index_as_it_was(
    directory: IndexDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    assert run("backup", tmp_path / "backup.tar", "--index", directory.path).exit_code == 0
    assert run("delete", "--index", directory.path, "--ids", "d1").exit_code == 0
    monkeypatch.setattr(Stopping, "number", number)
    new = write_corpus(tmp_path / "new.parquet", random_gaussians(3, 3), tag=["new"] * 3)
    for at, arguments in (
        ("encoding", ["add", new, "--index", directory.path]),
        ("encoding", ["compact", "--index", directory.path]),
        ("encoding", ["compact", "--retrain", "--index", directory.path]),
        ("copying", ["backup", tmp_path / "other.tar", "--index", directory.path]),
        ("checking", ["restore", tmp_path / "backup.tar", "--index", directory.path]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Stopping, "at", at)
            for module in ("write_commands", "generation_commands"):
                patch.setattr(f"service.{module}.progress_for", Stopping)
            stopped = run(*arguments)
        assert (stopped.exit_code, "interrupted; the index is as it was" in stopped.stderr) == (130, True), arguments
        assert "Traceback" not in stopped.output
        assert directory.verify().generation == 2
        assert not (tmp_path / "other.tar").exists()
        assert not list(tmp_path.glob(".other*"))
        copy = IndexDirectory(shutil.copytree(directory.path, tmp_path / "copy"))
        again = run(*arguments[:-1], copy.path)
        assert again.exit_code == 0, again.output
        copy.verify()
        shutil.rmtree(copy.path)
        (tmp_path / "other.tar").unlink(missing_ok=True)
    signal.signal(signal.SIGINT, before)


def test_pinning_waits_for_who_writes(directory: IndexDirectory) -> None:
    with directory.lock():
        refused = run("generations", "--index", directory.path, "--pin", 1, "--wait", "0.01")
        assert (refused.exit_code, "[index_locked]" in refused.stderr) == (1, True)
        # Listing does not.
        assert run("generations", "--index", directory.path).exit_code == 0
    assert directory.pinned() == set()


@pytest.mark.parametrize("given", [True, False])
def test_queries_that_are_not_given_again_are_missed(tmp_path: Path, given: bool) -> None:
    """They were those of the build, and what is measured without them may promise too much."""
    corpus = write_corpus(tmp_path / "corpus.parquet", random_gaussians(400, 6))
    queries = write_corpus(tmp_path / "queries.parquet", random_gaussians(40, 6, seed=1))
    build = ["build", corpus, "--index", tmp_path / "index", "--kind", "fastscan"]
    assert run(*build, *(["--queries", queries] if given else [])).exit_code == 0
    manifest = IndexDirectory(tmp_path / "index").manifest()
    assert manifest.measured_recall is not None
    assert manifest.had_queries == given
    result = run("compact", "--index", tmp_path / "index", "--retrain")
    assert result.exit_code == 0, result.output
    assert ("queries were given before and are not now" in result.stderr) == given
    again = run("compact", "--index", tmp_path / "index", "--retrain", "--queries", queries)
    assert "queries were given before" not in again.stderr
    assert IndexDirectory(tmp_path / "index").manifest().had_queries


@pytest.mark.parametrize("command", ["build", "add"])
def test_a_file_that_the_user_names_may_be_a_link_and_stays_one(tmp_path: Path, command: str) -> None:
    """Or a device: what is written to /dev/null must not take its place."""
    corpus = tmp_path / "corpus.jsonl"
    good = {"id": "new", "mean": [0.0] * 3, "variance": [1.0] * 3}
    corpus.write_text(f"{json.dumps(good)}\n{json.dumps({**good, 'id': 'bad', 'variance': [0.0] * 3})}\n")
    there = write_corpus(tmp_path / "there.parquet", random_gaussians(5, 3))
    if command == "add":
        assert run("build", there, "--index", tmp_path / "index").exit_code == 0
    target = tmp_path / "target.jsonl"
    (tmp_path / "link.jsonl").symlink_to(target)
    options = ["--index", tmp_path / "index", "--on-error", "skip"]
    result = run(command, corpus, *options, "--rejected-to", tmp_path / "link.jsonl")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "link.jsonl").is_symlink()
    assert json.loads(target.read_text())["row"] == 2


@pytest.mark.parametrize("command", ["build", "add"])
def test_a_link_that_lies_in_an_index_is_not_followed_by_rejected_rows(tmp_path: Path, command: str) -> None:
    corpus, victim, index = tmp_path / "corpus.jsonl", tmp_path / "victim", tmp_path / "index"
    good = {"id": "new", "mean": [0.0] * 3, "variance": [1.0] * 3}
    corpus.write_text(f"{json.dumps(good)}\n{json.dumps({**good, 'id': 'bad', 'variance': [0.0] * 3})}\n")
    there = write_corpus(tmp_path / "there.parquet", random_gaussians(5, 3))
    assert run("build", there, "--index", index).exit_code == 0
    victim.write_text("mine")
    (index / "rejected.jsonl").symlink_to(victim)
    result = run(command, corpus, "--index", index, "--on-error", "skip")
    assert result.exit_code == 0, result.output
    assert victim.read_text() == "mine"
    assert json.loads((index / "rejected.jsonl").read_text())["row"] == 2
