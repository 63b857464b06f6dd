"""A run's record: rows that survive kills and resumes, trackers that come and go, grids and curves."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from premeditate import images
from premeditate.config import load_config
from premeditate.errors import PremeditateError, StoreError
from premeditate.rewards.base import Sample
from premeditate.trace import Task
from premeditate.training import trackers
from premeditate.training.checkpoint import start
from premeditate.training.curves import NothingToDraw, curve, draw, figures, mean
from premeditate.training.grid import Edit, Row, fitted, wrap
from premeditate.training.grid import draw as draw_grid
from premeditate.training.journal import Journal, read
from premeditate.training.recipe import Recipe


def recipe(*to: str, **changes: Any) -> Recipe:
    return Recipe.model_validate({"name": "run", "logging": {"to": to}, **changes})


def steps(out: Path) -> list[int]:
    return [row["step"] for row in read(out)]


# -- rows -----------------------------------------------------------------------------------------------------------


def test_rows_are_written_and_told(tmp_path: Path) -> None:
    told: list[Any] = []
    said: list[str] = []
    journal = Journal(tmp_path, recipe(), say=said.append, on_figures=lambda *row: told.append(row))
    journal.write("eval", 0, {"eval/follow": 0.5, "eval/follow/n": 8, "eval/keep": math.nan})
    journal.write("step", 1, {"loss": 2.5})
    journal.notice("mind the gap")
    rows = journal.rows()
    assert [(r["kind"], r["step"]) for r in rows] == [("eval", 0), ("step", 1), ("notice", 1)]
    assert rows[0]["eval/follow"] == 0.5 and rows[0]["eval/follow/n"] == 8 and rows[0]["eval/keep"] is None
    assert all(row["at"] > 1.6e9 for row in rows) and rows[2]["text"] == "mind the gap"
    assert told == [("eval", 0, {"eval/follow": 0.5, "eval/follow/n": 8.0}), ("step", 1, {"loss": 2.5})]
    assert said == ["mind the gap"]
    for line in (tmp_path / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # strict JSON: no NaN
    journal.close()


def test_the_whole_recipe_is_kept(tmp_path: Path) -> None:
    Journal(tmp_path, recipe(steps=7)).close()
    assert load_config(Recipe, tmp_path / "recipe.yaml") == recipe(steps=7)


def test_a_resume_drops_what_is_done_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, recipe())
    for step in range(6):
        journal.write("step", step, {"loss": step})
    journal.write("eval", 5, {"eval/a": 1})
    journal.close()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"kind": "step", "step": 6, "lo')  # killed here
    assert steps(tmp_path) == [0, 1, 2, 3, 4, 5, 5]
    again = Journal(tmp_path, recipe(), step=3)
    assert steps(tmp_path) == [0, 1, 2, 3]
    again.write("step", 4, {"loss": 40})
    assert [(r["step"], r["loss"]) for r in read(tmp_path)][-1] == (4, 40)
    again.close()
    Journal(tmp_path, recipe()).close()  # a new run
    assert steps(tmp_path) == []


def test_a_damaged_line_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe garbage\n[1]\n{"step": 2}\n{"step": 3}\n')
    assert steps(tmp_path) == [1, 2, 3]
    Journal(tmp_path, recipe(), step=2).close()
    assert steps(tmp_path) == [1, 2]
    assert read(tmp_path / "nowhere") == []


def test_one_process_writes_a_run(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from premeditate.training.journal import Journal
        from premeditate.training.recipe import Recipe
        journal = Journal(Path(sys.argv[1]), Recipe())
        print("ready", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        with pytest.raises(StoreError, match="another process is writing"):
            Journal(tmp_path, recipe())
        with pytest.raises(StoreError, match="another process is training"):  # before anything was loaded
            start(tmp_path, recipe(), resume=True, say=pytest.fail)
        process.communicate("")
    Journal(tmp_path, recipe()).close()
    assert start(tmp_path, recipe(), resume=False, say=pytest.fail) is None


def test_a_run_that_failed_may_be_tried_again_in_the_same_process(tmp_path: Path) -> None:
    failed = Journal(tmp_path, recipe())  # still held by a traceback, say
    assert start(tmp_path, recipe(), resume=True, say=lambda line: None) is None
    Journal(tmp_path, recipe()).close()
    failed.close()


def test_a_closed_journal_lets_go_of_its_folder(tmp_path: Path) -> None:
    Journal(tmp_path, recipe()).close()
    Journal(tmp_path, recipe()).close()


# -- trackers -------------------------------------------------------------------------------------------------------


def events(out: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(out / "tensorboard"))
    found.Reload()
    return found


def test_tensorboard_gets_figures_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    journal = Journal(tmp_path, recipe("tensorboard"))
    journal.write("eval", 0, {"eval/a": 0.5, "eval/a/low": 0.4, "eval/a/high": 0.6, "eval/a/n": 9, "x": math.nan})
    for step in range(1, 6):
        journal.write("step", step, {"loss": step, "reward/low": 0.25})
    journal.grid(5, shown())
    journal.close()
    resumed = Journal(tmp_path, recipe("tensorboard"), step=3)
    resumed.write("step", 4, {"loss": 40})
    resumed.close()
    found = events(tmp_path)
    assert set(found.Tags()["scalars"]) == {"eval/a", "train/loss", "reward/low"}
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    assert found.Scalars("reward/low")[0].value == 0.25


class FakeRun:
    def __init__(self, id: str) -> None:
        self.id, self.rows, self.done = id, list[Any](), False

    def log(self, row: dict[str, Any], step: int) -> None:
        self.rows.append((step, row))

    def finish(self) -> None:
        self.done = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that takes what Weights & Biases takes."""
    fake: Any = types.ModuleType("wandb")
    fake.__spec__ = types.SimpleNamespace()
    fake.calls, fake.runs, fake.Image = [], [], lambda image: ("picture", image.size)

    def init(**options: Any) -> FakeRun:
        fake.calls.append(options)
        fake.runs.append(FakeRun(options["id"] or "fresh"))
        return fake.runs[-1]

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_goes_on_with_the_same_run(tmp_path: Path, wandb: Any) -> None:
    journal = Journal(tmp_path, recipe("wandb"))
    journal.write("step", 1, {"loss": 1.0})
    path = journal.grid(1, shown())
    journal.close()
    assert path is not None and wandb.runs[0].done
    assert wandb.runs[0].rows == [(1, {"train/loss": 1.0}), (1, {"eval/edits": ("picture", images.load(path).size)})]
    Journal(tmp_path, recipe("wandb"), step=1).close()
    first, second = wandb.calls
    assert (first["id"], first["resume"]) == (None, None) and (second["id"], second["resume"]) == ("fresh", "allow")
    assert first["project"] == "premeditate" and first["name"] == "run" and first["config"]["steps"] == 200
    Journal(tmp_path, recipe("wandb")).close()  # a new run is a new run
    assert wandb.calls[2]["id"] is None


def test_trackio_gets_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = types.ModuleType("trackio")
    fake.__spec__ = types.SimpleNamespace()
    said: list[Any] = []
    fake.init = lambda **options: said.append(("init", options["project"], options["name"], options["resume"]))
    fake.log = lambda row, step: said.append((step, row))
    fake.Image = lambda image: "picture"
    fake.finish = lambda: said.append("finish")
    monkeypatch.setitem(sys.modules, "trackio", fake)
    journal = Journal(tmp_path, recipe("trackio"), step=2)
    journal.write("step", 3, {"loss": 1.0})
    journal.grid(3, shown())
    journal.close()
    assert said == [
        ("init", "premeditate", "run", "allow"), (3, {"train/loss": 1.0}), (3, {"eval/edits": "picture"}), "finish"
    ]  # fmt: skip


def test_a_missing_tracker_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    for name in ("tensorboard", "wandb", "trackio"):
        with pytest.raises(PremeditateError, match=rf"asks for {name}.*; pip install 'premeditate\[{name}\]'"):
            Journal(tmp_path, recipe(name))
    trackers.check([])


def test_a_tracker_that_does_not_start_is_an_error(tmp_path: Path, wandb: Any) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("api_key not configured\n(no-tty)")

    wandb.init = init
    with pytest.raises(PremeditateError, match=r"wandb cannot start: api_key not configured \(no-tty\); mend it, or"):
        Journal(tmp_path, recipe("wandb"))


def test_a_tracker_that_fails_later_ends_nothing(tmp_path: Path, wandb: Any) -> None:
    said: list[str] = []
    journal = Journal(tmp_path, recipe("wandb"), say=said.append)

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("network is down")

    wandb.runs[0].log = broken
    journal.write("step", 1, {"loss": 1.0})
    journal.write("step", 2, {"loss": 1.0})
    journal.close()
    assert len(said) == 1 and "wandb failed (figures: network is down)" in said[0]
    assert [r["kind"] for r in read(tmp_path)] == ["step", "notice", "step"] and not wandb.runs[0].done


# -- grids ----------------------------------------------------------------------------------------------------------


def shown(count: int = 2) -> list[tuple[int, Sample, dict[str, float]]]:
    source, edit = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    task = Task(id="t", images=(), instruction="paint the red circle at b4 orange")
    return [(i, Sample(task=task, source=source, edit=edit), {"follow": 1.0, "keep": math.nan}) for i in range(count)]


def colours(image: Image.Image) -> dict[tuple[int, ...], int]:
    values, counts = np.unique(np.asarray(image).reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(map(int, value)): int(n) for value, n in zip(values, counts, strict=True)}


def test_a_grid_shows_sources_and_edits(tmp_path: Path) -> None:
    journal = Journal(tmp_path, recipe())
    path = journal.grid(20, shown(3))
    assert path == tmp_path / "grids" / "step-000020.png"
    found = colours(images.load(path))
    assert found[(255, 0, 0)] == found[(0, 0, 255)] == 3 * 192 * 192
    assert journal.grid(40, []) is None
    journal.close()


def test_a_grid_that_cannot_be_drawn_is_a_notice(tmp_path: Path) -> None:
    journal = Journal(tmp_path, recipe())
    (tmp_path / "grids").write_text("a file where the folder should be")
    assert journal.grid(20, shown()) is None and "no grid was made at step 20" in read(tmp_path)[0]["text"]
    journal.close()


def test_scores_are_written_beside_the_edit_and_a_missing_one_is_not_zero() -> None:
    source = Image.new("RGB", (64, 64), "red")

    def page(value: float | None) -> bytes:
        return draw_grid([Row(source, "p", (Edit(source, {"keep": value}),))]).tobytes()

    assert page(None) == page(math.nan) != page(0.0) != page(1.0)


def test_a_row_takes_several_edits_of_any_size() -> None:
    red, green = Image.new("RGB", (64, 64), (255, 0, 0)), Image.new("RGB", (512, 256), (0, 255, 0))
    blue = Image.new("RGB", (9, 300), (0, 0, 255))
    page = draw_grid([Row(red, "a " * 300, (Edit(green), Edit(blue, {}, "words " * 90))), Row(red, "", ())])
    found = colours(page)
    assert found[(255, 0, 0)] == 2 * 192 * 192 and found[(0, 255, 0)] == 256 * 128 and found[(0, 0, 255)] == 8 * 256
    with pytest.raises(ValueError, match="at least one row"):
        draw_grid([])


def test_small_pictures_are_enlarged_pixel_by_pixel() -> None:
    dots = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8))
    large = fitted(dots)
    assert large.size == (144, 192)
    assert np.array_equal(np.asarray(large)[::3, ::3], np.asarray(dots))
    assert fitted(Image.new("RGBA", (200, 100))).size == (200, 100) and fitted(Image.new("L", (1, 1))).size == (
        160,
        160,
    )


@pytest.mark.parametrize(
    "text", ["", "word", "some words that go on " * 20, "x" * 500, "a\nb\x1b[2J", "short " + "y" * 90]
)
def test_wrapped_text_fits(text: str) -> None:
    from premeditate.training.grid import _font

    lines = wrap(text, 200, 4)
    assert len(lines) <= 4 and all(_font().getlength(line) <= 200 for line in lines)
    assert "\x1b" not in "".join(lines)
    if len(lines) < 4:
        assert "".join(lines).replace(" ", "").startswith("".join(text.split())[:1])


# -- curves ---------------------------------------------------------------------------------------------------------


def evaluated(values: list[float], name: str = "eval/success") -> list[dict[str, Any]]:
    return [{"kind": "eval", "step": 10 * i, name: v, f"{name}/low": v - 0.1, f"{name}/high": v + 0.1, f"{name}/n": 9}
            for i, v in enumerate(values)] + [{"kind": "step", "step": 1, "loss": 3}]  # fmt: skip


def test_curves_of_several_runs_and_seeds(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = {
        "grpo": [evaluated([0.1, 0.5, 0.6]), evaluated([0.2, 0.4, 0.7])],
        "nft": [evaluated([0.1, 0.9])],
        "none": [],
    }
    path = draw(runs, tmp_path / "deep" / "curve.png", title="runs")
    picture = images.load(path)
    assert picture.width > 600 and picture.height > 400 and picture.getpixel((2, 2)) == (255, 255, 255)
    assert {(31, 119, 180), (255, 127, 14)} <= colours(picture).keys()  # a line of each run


def test_a_single_run_shows_all_its_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [{"kind": "eval", "step": s, "eval/a.a": s / 9, "eval/a.b": 0.5, "eval/c": 1 - s / 9} for s in range(4)]
    found = colours(images.load(draw({"run": [rows]}, tmp_path / "c.png")))
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= found.keys()
    assert (255, 127, 14) not in colours(images.load(draw({"run": [rows]}, tmp_path / "c.png", figure="eval/c")))


def test_a_curve_takes_what_was_measured() -> None:
    rows = [*evaluated([0.1, 0.5]), {"kind": "eval", "step": 20, "eval/success": None}, {"kind": "eval", "step": 30}]
    assert curve(rows, "eval/success") == [(0, 0.1, 0.0, 0.2), (10, 0.5, 0.4, 0.6)]
    assert figures([rows]) == ["eval/success"]
    (only,) = curve([{"kind": "eval", "step": 3, "eval/x": 1}], "eval/x")
    assert only[:2] == (3, 1.0) and math.isnan(only[2])


def test_the_interval_of_seeds_is_students() -> None:
    seeds = [[(0, v, 0.0, 1.0), (10, v, 0.0, 1.0)] for v in (0.2, 0.3, 0.7)]
    seeds[2] = seeds[2][:1]  # one seed is not there yet
    ((step, centre, low, high),) = mean(seeds)
    spread = float(np.std([0.2, 0.3, 0.7], ddof=1))
    assert (step, centre) == (0, pytest.approx(0.4))
    assert high - centre == centre - low == pytest.approx(4.303 * spread / math.sqrt(3))  # t(2) at 97.5 %
    assert mean([[(0, 0.5, 0.0, 0.0)]] * 30)[0][2:] == (0.5, 0.5)


def test_a_journal_draws_its_curve(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    journal = Journal(tmp_path, recipe())
    assert journal.curve() is None and read(tmp_path) == []
    journal.write("eval", 0, {"eval/success": 0.5})
    assert journal.curve() == tmp_path / "curve.png" and images.load(tmp_path / "curve.png").width > 500
    journal.close()


def test_what_cannot_be_drawn_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NothingToDraw, match="there are eval/success"):
        draw({"a": [evaluated([0.5])]}, tmp_path / "c.png", figure="eval/other")
    with pytest.raises(NothingToDraw, match="no run has been evaluated; evaluate it"):
        draw({"a": [[]]}, tmp_path / "c.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(NothingToDraw, match="pip install matplotlib"):
        draw({"a": [evaluated([0.5])]}, tmp_path / "c.png")
