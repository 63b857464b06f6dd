"""Task lists: what is read of a user's own list, what is said of rows that are none, and what a dataset must be."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from premeditate.datasets.tasks import LONGEST, BadRow, TaskRow, count, read, rows, write
from premeditate.store import RunStore
from premeditate.trace import Started, Task

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "rise48"


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def listed(folder: Path, *lines: Any) -> Path:
    """A file of JSON lines; a bytes line is written as it is."""
    file = folder / "list.jsonl"
    file.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return file


def problem(row: TaskRow | BadRow) -> str:
    assert isinstance(row, BadRow), row
    return row.problem


# -- a user's own list ------------------------------------------------------------------------------------------------


def test_a_list_of_json_lines(tmp_path: Path) -> None:
    red = picture(tmp_path / "in" / "a.png")
    blue = picture(tmp_path / "elsewhere" / "b.png", "blue")
    (tmp_path / "in" / "lists").mkdir()
    file = listed(
        tmp_path / "in" / "lists",
        {"id": "one", "image": "../a.png", "instruction": "  paint it\n blue ", "meta": {"level": 2}, "source": "web"},
        b"   ",
        {"images": [str(blue), "../a.png"], "instruction": "paint it red"},
        {"id": 7, "image": str(red), "instruction": "remove it", "meta": None},
    )
    one, two, three = rows(file)
    assert isinstance(one, TaskRow) and isinstance(two, TaskRow) and isinstance(three, TaskRow)
    assert (one.id, one.instruction, one.meta) == ("one", "paint it blue", {"level": 2, "source": "web"})
    assert one.images[0].getpixel((0, 0)) == (255, 0, 0)
    assert two.id == "line-3", "a row without an id is named by its line, so that appending changes no name"
    assert [image.getpixel((0, 0)) for image in two.images] == [(0, 0, 255), (255, 0, 0)]
    assert (three.id, three.meta) == ("7", {})
    assert count(file) == 3


def test_bad_rows_say_what_and_where_and_the_rest_goes_on(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    good = {"image": "a.png", "instruction": "paint it blue"}
    lines: list[tuple[Any, str]] = [
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        ([1, 2], "it is a list"),
        ({"instruction": "x"}, "names no picture"),
        ({"images": [], "instruction": "x"}, "names no picture"),
        ({"image": 3, "instruction": "x"}, "names no picture"),
        ({"image": "a.png", "images": ["a.png"], "instruction": "x"}, "both image and images"),
        ({"image": "a.png"}, "instruction is missing"),
        ({"image": "a.png", "instruction": " \n "}, "instruction is empty"),
        ({"image": "a.png", "instruction": 5}, "instruction is a number"),
        ({"image": "a.png", "instruction": "say <|im_start|>system"}, "control token"),
        ({"image": "b.png", "instruction": "x"}, f"no picture {tmp_path / 'b.png'}"),
        ({"image": "a\0.png", "instruction": "x"}, "a\\x00.png"),
        ({"image": "n" * 5000, "instruction": "x"}, "can be no picture"),
        ({"image": "broken.png", "instruction": "x"}, "broken"),
        ({"image": ".", "instruction": "x"}, "is a folder"),
        ({"image": "https://example.org/a.png", "instruction": "x"}, "is an address"),
        ({**good, "meta": [1]}, "meta is a list"),
        ({**good, "id": ""}, "id is a text"),
        ({**good, "id": True}, "id is true or false"),
        (b'{"image": "a.png", "instruction": "x", "meta": {"a": NaN}}', "plain JSON"),
        (b'{"image": "a.png", "instruction": "x", "meta": {"a": 1e999}}', "plain JSON"),
        (b'{"image": "a.png", "instruction": "x", "meta": {"a": "\\ud800"}}', "plain JSON"),
    ]
    file = listed(tmp_path, *(line for line, _ in lines), good)
    *bad, last = rows(file)
    assert isinstance(last, TaskRow), "what follows bad rows is read"
    assert len(bad) == len(lines)
    for number, (row, (line, words)) in enumerate(zip(bad, lines, strict=True), 1):
        assert words in problem(row), (line, problem(row))
        assert problem(row).startswith(f"line {number}: ")
        assert row.problem.isprintable()
    assert len({row.id for row in bad}) == len(bad)


def test_an_id_that_was_there_before_is_a_bad_row_of_another_name(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    row = {"id": "cat", "image": "a.png", "instruction": "paint it blue"}
    first, second, third = rows(listed(tmp_path, row, {"id": "cat"}, row))
    assert isinstance(first, TaskRow)
    assert "'cat'" in problem(third)
    assert len({first.id, second.id, third.id}) == 3


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    file = tmp_path / "list.jsonl"
    with file.open("wb") as out:
        out.write(b'{"instruction": "')
        for _ in range(12 * (LONGEST >> 20)):
            out.write(b"x" * (1 << 20))
        out.write(b'"}\n' + json.dumps({"image": "a.png", "instruction": "paint it"}).encode())
    tracemalloc.start()
    long, good = rows(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "longer than 4 MiB" in problem(long)
    assert isinstance(good, TaskRow)
    assert peak < 6 * LONGEST
    assert count(file) == 2


def test_pictures_are_read_one_at_a_time(tmp_path: Path) -> None:
    """A thousand large pictures must not be in memory together: none is opened before its row is asked for."""
    picture(tmp_path / "a.png")
    lines = [{"image": f"{k}.png", "instruction": "paint it"} for k in range(100)]
    found = rows(listed(tmp_path, *lines))
    picture(tmp_path / "0.png")
    assert isinstance(next(found), TaskRow)
    picture(tmp_path / "1.png")
    assert isinstance(next(found), TaskRow), "it was opened only now"
    assert isinstance(next(found), BadRow)


def test_a_folder_of_pictures_with_texts(tmp_path: Path) -> None:
    picture(tmp_path / "b.png", "blue")
    picture(tmp_path / "a.JPG")
    picture(tmp_path / "c.png")
    (tmp_path / "a.txt").write_text("\ufeffpaint it green\n", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "notes.txt").write_text("not about a picture")
    one, two, three = rows(tmp_path)
    assert isinstance(one, TaskRow)
    assert (one.id, one.instruction) == ("a.JPG", "paint it green")
    assert "UTF-8" in problem(two)
    assert "no c.txt beside it" in problem(three)
    assert count(tmp_path) == 3


def test_a_folder_with_tasks_and_risebench(tmp_path: Path) -> None:
    write(tmp_path / "data", [TaskRow("t", (Image.new("RGB", (4, 4)),), "paint it")])
    (one,) = rows(tmp_path / "data")
    assert one.id == "t"
    picture(tmp_path / "rise" / "temporal" / "1.png")
    entry = {"index": "temporal_1", "category": "temporal", "instruction": "in a year", "image": "temporal/1.png"}
    (tmp_path / "rise" / "data_total.json").write_text(json.dumps([{**entry, "reference": "Rotten."}, {"index": "x"}]))
    for path in (tmp_path / "rise", tmp_path / "rise" / "data_total.json"):
        first, second = rows(path)
        assert isinstance(first, TaskRow)
        assert (first.id, first.instruction) == ("temporal_1", "in a year")
        assert first.meta == {"category": "temporal", "reference": "Rotten."}
        assert (second.id, problem(second)[:8]) == ("x", "entry 2:")
        assert count(path) == 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="the RISEBench sample is not on this machine")
def test_the_real_risebench_sample() -> None:
    found = list(rows(SHARED))
    assert len(found) == count(SHARED) == 48
    assert all(isinstance(row, TaskRow) for row in found)


def test_what_is_no_list_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text('{"a": 1}')
    (tmp_path / "worse.json").write_text("{")
    for name, words in (("nothing", "no tasks"), ("empty", "neither"), ("bad.json", "no list"), ("worse.json", "list")):
        for ask in (rows, count):
            with pytest.raises(ValueError, match=words) as caught:
                ask(tmp_path / name)
            assert "; " in str(caught.value), "the mend is missing"


KEYS = st.sampled_from(["id", "image", "images", "instruction", "meta", "other"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["a.png", "paint"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=6)
NEARLY = st.fixed_dictionaries(
    {"image": st.just("a.png"), "instruction": st.text(max_size=12) | st.just("paint it")},
    optional={"id": st.text(max_size=3) | st.integers(0, 3), "meta": OBJECTS, "line-2": VALUES},
)
LINES = st.lists((OBJECTS | NEARLY | VALUES).map(lambda x: json.dumps(x).encode()) | st.binary(max_size=40), max_size=8)


@given(lines=LINES, end=st.sampled_from([b"", b"\n"]))
def test_whatever_a_list_holds_every_line_is_a_row_that_a_run_can_keep(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], end: bytes
) -> None:
    folder = tmp_path_factory.mktemp("list")
    picture(folder / "a.png")
    file = folder / "list.jsonl"
    file.write_bytes(b"\n".join(lines) + end)
    found = list(rows(file))
    assert len(found) == count(file)
    assert len({row.id for row in found}) == len(found), "ids tell rows apart"
    assert len(found) <= b"\n".join(lines).count(b"\n") + 1
    with RunStore(folder / "run", sync=False) as run:
        for number, row in enumerate(found):
            if isinstance(row, BadRow):
                assert row.problem and row.problem.isprintable()
                task = Task(id=row.id, images=(), instruction=row.instruction, meta={"problem": row.problem})
            else:
                assert row.instruction.strip() == row.instruction != ""
                refs = tuple(run.put_image(image) for image in row.images)
                task = Task(id=row.id, images=refs, instruction=row.instruction, meta=row.meta)
            run.append(f"t{number}", Started(trace_id=f"t{number}", task=task))
            assert run.trace(f"t{number}").task == task


# -- datasets ---------------------------------------------------------------------------------------------------------


def test_a_dataset_reads_back_and_is_written_once(tmp_path: Path) -> None:
    given_ = [TaskRow(f"t{k}", (Image.new("RGB", (4, 4), (k, 0, 0)),), "paint it", {"k": k}) for k in range(3)]
    assert write(tmp_path / "data", given_) == 3
    back = list(read(tmp_path / "data"))
    assert [(row.id, row.instruction, row.meta) for row in back] == [(f"t{k}", "paint it", {"k": k}) for k in range(3)]
    assert [row.images[0].tobytes() for row in back] == [row.images[0].tobytes() for row in given_]
    with pytest.raises(ValueError, match="there already"):
        write(tmp_path / "data", given_)
    with pytest.raises(ValueError, match="two tasks"):
        write(tmp_path / "other", given_ + given_)
    assert not (tmp_path / "other" / "tasks.jsonl").exists()


def test_a_dataset_holds_its_own_pictures_and_no_bad_row(tmp_path: Path) -> None:
    picture(tmp_path / "outside.png")
    folder = tmp_path / "data"
    folder.mkdir()
    for name, words in (("../outside.png", "outside the dataset"), ("none.png", "no picture")):
        listed(folder, {"id": "a", "images": [name], "instruction": "paint it"}).rename(folder / "tasks.jsonl")
        with pytest.raises(ValueError, match=words) as caught:
            list(read(folder))
        assert "line 1" in str(caught.value)
    with pytest.raises(ValueError, match="no tasks"):
        next(read(tmp_path / "nothing"))
