"""`gaussearch encode` beside what is not its own: sources, lists, folders and locks that are in its way."""

import json
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import index.durable
from index.build_options import EncodeOptions
from index.errors import BuildError, SourceError
from index.text import TextPrecision
from index.text.files import encode_texts
from index.text.working import MARKER, clear, working_folder
from tests.word_encoder import WordEncoder

ANY = EncodeOptions(model="given")
SKIPPING = EncodeOptions(model="given", on_error="skip")


def texts(path: Path, count: int = 50, empty: int = 0) -> Path:
    """So many texts, of which every `empty`-th is none."""
    rows = ({"_id": f"d{row}", "text": "" if empty and row % empty == 0 else f"text {row}"} for row in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def interrupt(source: Path, output: Path, options: EncodeOptions = ANY, left: int = 30) -> None:
    encoder = WordEncoder()
    encoder.left = left
    with pytest.raises(KeyboardInterrupt):
        encode_texts(source, output, options, encoder=encoder)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.text.files.PART_ROWS", 8)
    monkeypatch.setattr("index.sources.TEXT_BATCH_ROWS", 3)


@pytest.mark.parametrize("name", ["a.jsonl", "out.parquet", "./b/../out.parquet", ".out.parquet.parts/list"])
def test_a_list_takes_the_place_of_no_source_and_of_no_output(name: str, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    source = texts(tmp_path / "a.jsonl", 20, empty=3)
    before, options = source.read_bytes(), SKIPPING.model_copy(update={"rejected_to": tmp_path / name})
    for given in (source, tmp_path):
        with pytest.raises(BuildError, match="name another file for rejected rows"):
            encode_texts(given, tmp_path / "out.parquet", options, encoder=WordEncoder())
    assert source.read_bytes() == before
    assert not (tmp_path / "out.parquet").exists()


def test_what_is_made_in_a_folder_of_texts_is_no_text(tmp_path: Path) -> None:
    texts(tmp_path / "a.jsonl", 50, empty=5)
    output = tmp_path / "out.parquet"
    interrupt(tmp_path, output, SKIPPING)
    for _ in range(2):
        summary = encode_texts(tmp_path, output, SKIPPING, encoder=WordEncoder())
        assert (summary.rows, summary.rejected) == (40, 10)
    assert encode_texts(f"{tmp_path}/*", output, SKIPPING, encoder=WordEncoder()).rows == 40


def test_an_output_that_is_a_source_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["a"], "text": ["bread"]}), source)
    texts(tmp_path / "b.jsonl")
    before = source.read_bytes()
    with pytest.raises(BuildError, match=r"a\.parquet is the source"):
        encode_texts(source, source, ANY, encoder=WordEncoder())
    # It would be lost, and nobody has asked for that.
    with pytest.raises(BuildError, match=r"a\.parquet is one of the sources"):
        encode_texts(tmp_path, source, ANY, encoder=WordEncoder())
    assert source.read_bytes() == before


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    source, output = texts(tmp_path / "a.jsonl", 5), tmp_path / "out.parquet"
    like_ours = tmp_path / "out.parquet.parts"
    like_ours.mkdir()
    (like_ours / "precious.parquet").write_text("mine")
    folder = working_folder(output)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(BuildError, match=r"parts is where .* gaussearch encode has not made it: move it away"):
        encode_texts(source, output, ANY, encoder=WordEncoder())
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").rename(tmp_path / "notes.txt")
    assert encode_texts(source, output, ANY, encoder=WordEncoder()).rows == 5
    assert not folder.exists()
    assert (like_ours / "precious.parquet").read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_is_no_folder_is_not_worked_in(kind: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    folder = working_folder(tmp_path / "out.parquet")
    if kind == "link":
        folder.symlink_to(tmp_path / "there")
    else:
        folder.write_text("")
    with pytest.raises(BuildError, match="it is no folder: move it away"):
        encode_texts(texts(tmp_path / "a.jsonl", 5), tmp_path / "out.parquet", ANY, encoder=WordEncoder())
    assert list((tmp_path / "there").iterdir()) == []


def test_what_others_put_beside_parts_stays(tmp_path: Path) -> None:
    source, output = texts(tmp_path / "a.jsonl"), tmp_path / "out.parquet"
    interrupt(source, output)
    other = working_folder(output) / "other.parquet"
    other.write_text("not ours")
    assert encode_texts(source, output, ANY, encoder=WordEncoder()).rows == 50
    assert sorted(path.name for path in other.parent.iterdir()) == [MARKER, other.name]


def test_where_all_is_left_out_the_list_that_is_named_is_there(tmp_path: Path) -> None:
    source = texts(tmp_path / "a.jsonl", 3, empty=1)
    with pytest.raises(SourceError, match=r"all 3 rows of .* left out, which .*out\.parquet\.rejected\.jsonl lists"):
        encode_texts(source, tmp_path / "out.parquet", SKIPPING, encoder=WordEncoder())
    assert len((tmp_path / "out.parquet.rejected.jsonl").read_text().splitlines()) == 3
    assert not working_folder(tmp_path / "out.parquet").exists()


def test_a_list_of_an_earlier_run_goes_where_nothing_is_left_out(tmp_path: Path) -> None:
    output, listed = tmp_path / "out.parquet", tmp_path / "out.parquet.rejected.jsonl"
    encode_texts(texts(tmp_path / "a.jsonl", 6, empty=2), output, SKIPPING, encoder=WordEncoder())
    assert listed.exists()
    assert encode_texts(texts(tmp_path / "a.jsonl", 6), output, SKIPPING, encoder=WordEncoder()).rejected == 0
    assert not listed.exists()


@pytest.mark.parametrize("left", [None, 0, 50, 200])
def test_a_list_that_a_power_cut_has_shortened_is_made_again(left: int | None, tmp_path: Path) -> None:
    source, output = texts(tmp_path / "a.jsonl", 60, empty=5), tmp_path / "out.parquet"
    interrupt(source, output, SKIPPING)
    listed = working_folder(output) / "rejected.jsonl"
    if left is None:
        listed.unlink()
    else:
        listed.write_bytes(listed.read_bytes()[:left])
    summary = encode_texts(source, output, SKIPPING, encoder=WordEncoder())
    assert (summary.rows, summary.rejected) == (48, 12)
    lines = (tmp_path / "out.parquet.rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == list(range(1, 61, 5))


def test_the_list_is_on_disk_before_the_part_that_goes_on_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def noted(name: str, function: Any) -> Any:
        def run(path: Path, *rest: Any) -> None:
            done.append(f"{name} {path.suffix}")
            function(path, *rest)

        return run

    for name in ("sync", "write_atomically"):
        monkeypatch.setattr(f"index.text.files.{name}", noted(name, getattr(index.durable, name)))
    encode_texts(texts(tmp_path / "a.jsonl", 18, empty=3), tmp_path / "out.parquet", SKIPPING, encoder=WordEncoder())
    assert done[:4] == ["sync .jsonl", "write_atomically .parquet"] * 2


def test_parts_in_another_precision_are_made_again(tmp_path: Path) -> None:
    source, output = texts(tmp_path / "a.jsonl"), tmp_path / "out.parquet"
    options = [EncodeOptions(model="given", model_precision=each) for each in TextPrecision if each != "auto"]
    interrupt(source, output, options[0])
    assert encode_texts(source, output, options[1], encoder=WordEncoder()).resumed == 0
    interrupt(source, output, options[0])
    assert encode_texts(source, output, options[0], encoder=WordEncoder()).resumed > 0


def test_who_comes_while_another_clears_up_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = texts(tmp_path / "a.jsonl", 5), tmp_path / "out.parquet"
    clearing, go_on = threading.Event(), threading.Event()

    def slowly(folder: Path) -> None:
        clear(folder)
        clearing.set()
        assert go_on.wait(60)

    monkeypatch.setattr("index.text.files.clear", slowly)
    first = threading.Thread(target=encode_texts, args=(source, output, ANY), kwargs={"encoder": WordEncoder()})
    first.start()
    assert clearing.wait(60)
    try:
        with pytest.raises(BuildError, match="another process is encoding into it"):
            encode_texts(source, output, ANY, encoder=WordEncoder())
    finally:
        go_on.set()
        first.join()
    assert encode_texts(source, output, ANY, encoder=WordEncoder()).rows == 5


def test_what_is_exported_of_ir_datasets_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def export(*arguments: Any) -> None:
        path = texts(arguments[-1], 5)
        path.write_bytes(zstandard.compress(path.read_bytes()))

    monkeypatch.setattr("index.text.corpora.export_texts", export)
    monkeypatch.setattr("index.text.corpora.sync", lambda path: synced.append(path.name))
    assert encode_texts("ir_datasets:any", tmp_path / "out.parquet", ANY, encoder=WordEncoder()).rows == 5
    assert synced[0].startswith(".")
    assert synced[0].endswith("-texts.jsonl.zst")
