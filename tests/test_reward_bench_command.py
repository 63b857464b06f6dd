"""premeditate bench rewards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from support.command import premeditate
from support.pair_files import EDITREWARD, EDITSCORE, bench, painted, reddened, vote, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return reddened(painted(tmp_path))


def test_the_command(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("bench", "rewards", "micro", "--n", 20)
    done = premeditate(*words, "--reward", "premeditate.microworld.reward:graded", "--json")
    assert done.code == 0 and done.json["accuracy"]["wrong"]["value"] >= 0.9 and done.json["pairs"] == 20
    png = tmp_path / "r.png"
    done = premeditate(*words, "--reward", "exact", "--diagram", png)
    assert done.code == 0 and "ECE 0.000" in done.out and png.exists()
    path = write(folder, [EDITREWARD, {"x": 1}])
    (tmp_path / "mine.py").write_text(
        "def dull(samples):\n    return [None for s in samples]\n\n\n"
        "def red(samples):\n    return [s.edit.getpixel((0, 0))[0] for s in samples]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    done = premeditate("bench", "rewards", path, "--reward", "mine:red", "--json")
    assert done.code == 0 and (done.json["pairs"], done.json["bad"]) == (1, 1)
    assert done.json["accuracy"]["wrong"]["value"] == 1
    for more, code, said in (
        (("--reward", "mine:dull"), 5, "no edit of 1 pairs could be scored"),
        (("--reward", "mine:red", "--score", "x"), 2, "no dimension 'x'"),
        (("--reward", "mine:red", "--score", "a", "--score", "b"), 2, "given twice"),
        (("--reward", "mine:red", "--format", "x"), 2, "no format 'x'"),
    ):
        done = premeditate("bench", "rewards", path, *more)
        assert done.code == code and said in done.err, done.err
    assert premeditate("bench", "rewards", tmp_path / "none.jsonl", "--reward", "exact").code == 2


@pytest.fixture
def one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of one pair that can be read and one row that is none, and rewards."""
    (folder / "lens.py").write_text(
        "from pathlib import Path\n\n\n"
        "def red(samples):\n    Path('asked').touch()\n    return [s.edit.getpixel((0, 0))[0] for s in samples]\n\n\n"
        "def dull(samples):\n    raise ValueError('the lens [cap] is on')\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "lens", raising=False)
    return write(folder, [EDITSCORE, {"x": 1}])


def test_options_that_would_be_ignored_are_refused_before_anything_is_asked(one: Path, folder: Path) -> None:
    for words, said in (
        ((one, "--score", "consistancy=score"), "about 'consistency', and nothing says which score they compare"),
        (
            (one, "--score", "consistency=score", "--score", "z=score"),
            "no pair is about 'z'; they are about consistency",
        ),
        ((one, "--diagram", "d.png"), "leave --diagram out, or measure on micro"),
        (("micro", "--format", "nonsense", "--root", "/nowhere"), "are made, and take no root and no format"),
    ):
        done = premeditate("bench", "rewards", *words, "--reward", "lens:red")
        assert done.code == 2 and said in done.err, done.err
    assert not (folder / "asked").exists()
    assert premeditate("bench", "rewards", one, "--reward", "lens:red", "--score", "consistency=score").code == 0


def test_what_was_measured_is_printed_though_it_cannot_be_drawn(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("bench", "rewards", "micro", "--n", 3, "--reward", "lens:red", "--diagram", "d.png")
    done = premeditate(*words, "--json")
    assert done.code == 2 and done.json["pairs"] == 3 and "no questions that can be checked" in done.err
    Path("asked").unlink()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = premeditate(*words)
    assert done.code == 2 and "pip install matplotlib" in done.err and not Path("asked").exists()


def test_why_nothing_could_be_scored(one: Path, folder: Path) -> None:
    done = premeditate("bench", "rewards", one, "--reward", "lens:dull")
    assert done.code == 5 and "of 2 answers 2: ValueError: the lens [cap] is on" in done.err and "another" in done.err
    for rows, said in (([], "holds no pairs"), ([{"x": 1}], "none of 1 rows of")):
        done = premeditate("bench", "rewards", write(folder, rows, lines=False), "--reward", "lens:red")
        assert done.code == 5 and said in done.err, done.err
    (folder / "half.py").write_text(
        "def half(samples):\n    return [None if s.edit.getpixel((0, 0))[0] else 1.0 for s in samples]\n"
    )
    done = premeditate("bench", "rewards", one, "--reward", "half:half")
    assert done.code == 0 and "without a score, 1: the function gave no score" in done.out


def test_a_long_measurement_says_how_far_it_is(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("premeditate.cli.measuring.LINE", 0.0)
    words = ("bench", "rewards", "micro", "--n", 3, "--batch", 2, "--reward", "exact")
    done = premeditate(*words)
    assert "2 pairs in" in done.err and "3 pairs in" in done.err and "3 pairs," in done.out
    assert "pairs in" not in premeditate(*words, "--json").err


def test_the_command_prints_the_protocol_of_the_format(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "plain_red.py").write_text(
        "def red(samples):\n    return [s.edit.getpixel((0, 0))[0] for s in samples]\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("COLUMNS", "160")
    words = ("--reward", "plain_red:red")
    for rows, key, said in (
        ([bench("r", "s"), bench("r", "s", "t"), bench("r", "s", "t", "no")], "tiger",
         ("groups, K=2, strict", "groups, K=3", "groups, K=4", "groups, overall, calibrated")),
        ([vote("r", "u", "leftvote"), vote("r", "s", "tievote")], "genai", ("GenAI-Bench's four labels, strict",)),
        ([{**EDITSCORE, "output_images": ["r.png", "s.png"]}], "editscore", ("EditScore's consistency, mean of 1",)),
    ):  # fmt: skip
        path = write(folder, rows)
        done = premeditate("bench", "rewards", path, *words)
        assert done.code == 0 and all(part in done.out for part in said), done.out
        data = premeditate("bench", "rewards", path, *words, "--json").json
        assert [name for name in ("tiger", "genai", "editscore") if name in data] == [key]
        if key == "tiger":
            assert data["tiger"]["strict"]["all"]["overall"] | {"low": 0, "high": 0} == {
                "k": 2, "n": 3, "value": 2 / 3, "low": 0, "high": 0,
            }  # fmt: skip
            assert data["tiger"]["strict"]["answered"]["left"] == 1
