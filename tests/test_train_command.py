"""`premeditate train`: what it says before, during and after a run, and what bad input gets. The run itself is
replaced here; tests of the trainer make real ones."""

from __future__ import annotations

import io
import re
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from premeditate.cli.steps import Progress, evaluated, stepped
from premeditate.config import load_kind, shipped
from premeditate.errors import ExitCode
from premeditate.training import checkpoint
from premeditate.training.errors import TrainingError
from premeditate.training.geometry import Geometry
from premeditate.training.kinds import EDITOR, RECIPES, trainer
from premeditate.training.recipe import Recipe
from premeditate.training.sft.recipe import portions
from support.command import premeditate

ROOT = Path(__file__).resolve().parent.parent
STEP = {"reward/graded.follow": 0.5, "groups/informative": 0.75, "loss": 0.0125, "seconds/sample": 1.5,
        "seconds/update": 0.5, "coverage": 1.0}  # fmt: skip
EVAL = {"eval/success": 0.4, "eval/success/low": 0.3, "eval/success/high": 0.5, "eval/success/n": 64.0}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of a trainer that reports three steps. `then` of a call's recipe name: what it ends with."""
    calls: list[dict[str, Any]] = []

    def train(recipe: Recipe, *, resume: bool, say: Any, on_figures: Any) -> dict[str, Any]:
        calls.append({"recipe": recipe, "resume": resume})
        say("encoding 3 tasks")
        on_figures("eval", 0, EVAL)
        for step in (1, 2, 3):
            on_figures("step", step, STEP)
            if step == 2 and recipe.name in ("stop", "early stop"):
                if recipe.name == "stop":
                    checkpoint.save(Path(recipe.out), 2, model={}, optimizer={}, state={}, recipe=recipe, keep=1)
                raise KeyboardInterrupt
            if recipe.name == "fail":
                raise TrainingError("step 1: the loss is not finite", "lower optimizer.lr")
        on_figures("eval", 3, EVAL)
        row = {"kind": "eval", "step": 3, "at": 1.0, **EVAL, "eval/keep": None}
        return {"out": recipe.out, "export": f"{recipe.out}/export", "steps": 3, "before": {}, "after": row}

    fake: Any = types.ModuleType("premeditate.training.editor")
    fake.train = train
    monkeypatch.setitem(sys.modules, "premeditate.training.editor", fake)
    return calls


def recipe(folder: Path, text: str = "steps: 3") -> Path:
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


# -- runs -----------------------------------------------------------------------------------------------------------


def test_a_run(tmp_path: Path, trained: list[dict[str, Any]]) -> None:
    done = premeditate("train", recipe(tmp_path), "optimizer.lr=1e-4", "--out", tmp_path / "run", "--resume")
    assert done.code == 0, done.err
    (call,) = trained
    assert call["resume"] and call["recipe"].optimizer.lr == 1e-4 and call["recipe"].out == str(tmp_path / "run")
    assert "encoding 3 tasks" in done.err and "success 0.400 [0.300, 0.500]" in done.err
    assert "step 1/3  graded.follow 0.500  75% of groups inform  loss 0.0125  2 s" in done.err
    assert "step 3/3" in done.err and "left" in done.err
    assert "trained" in done.out and f"{tmp_path}/run/export" in done.out and "no held-out tasks" in done.out
    assert "after      success 0.400 [0.300, 0.500]" in done.out
    assert f"{tmp_path}/run/export/README.md" in done.out


def test_json_is_one_object(tmp_path: Path, trained: list[dict[str, Any]]) -> None:
    done = premeditate("train", recipe(tmp_path, f"out: {tmp_path}/run"), "--json")
    assert done.code == 0 and done.err == "" and done.json["steps"] == 3 and done.json["after"]["eval/keep"] is None


def test_of_several_processes_one_speaks(
    tmp_path: Path, trained: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = premeditate("train", recipe(tmp_path), "--out", tmp_path / "run")
    assert (done.code, done.out, done.err) == (0, "", "") and len(trained) == 1


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, trained: list[dict[str, Any]]) -> None:
    out = tmp_path / "a run"
    done = premeditate("train", recipe(tmp_path), "name=stop", "-o", out)
    assert done.code == ExitCode.INTERRUPTED
    command = f"premeditate train {tmp_path}/recipe.yaml name=stop --out '{out}' --resume"
    assert f"interrupted; the last checkpoint is of step 2; go on with: {command}" in done.err
    done = premeditate("train", recipe(tmp_path), "name=early stop", "-o", tmp_path / "other")
    assert done.code == ExitCode.INTERRUPTED and "no checkpoint was written yet" in done.err


def test_a_run_that_cannot_go_on(tmp_path: Path, trained: list[dict[str, Any]]) -> None:
    done = premeditate("train", recipe(tmp_path), "name=fail", "-o", tmp_path / "run", "--json")
    assert done.code == ExitCode.USAGE and "the loss is not finite; lower optimizer.lr" in done.err
    assert done.json["error"].startswith("step 1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["batch.grups=3"], "there is no key batch.grups; did you mean batch.groups?"),
        (["batch.groups=3", "batch.updates=2"], "nearest: batch.groups=2 or batch.groups=4, or batch.updates=1"),
        (["rollout.window={kind: fixed}"], "rollout.window: "),
        (["sharding.kind=fsdp"], "this is one; start with torchrun"),
        (["rollout.noise_level=0"], "flow-grpo needs noise"),
        (["--devices", "2"], "--devices says what --dry-run is to count with"),
        (["logging.to=[wandb]"], "pip install 'premeditate[wandb]'"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_loaded(
    words: list[str], said: str, tmp_path: Path, trained: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from premeditate.training import trackers

    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    done = premeditate("train", recipe(tmp_path), *words, "--out", tmp_path / "run")
    assert done.code == ExitCode.USAGE and said in done.err and not trained and not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path, trained: list[dict[str, Any]]) -> None:
    (tmp_path / "file").write_text("")
    done = premeditate("train", recipe(tmp_path), "--out", tmp_path / "file" / "run")
    assert done.code == ExitCode.WRITE and not trained


def test_a_recipe_that_is_not_there(trained: list[dict[str, Any]]) -> None:
    done = premeditate("train", "flow-grop")
    assert done.code == ExitCode.USAGE and "there is no recipe flow-grop; give a YAML file, or " in done.err


# -- dry runs -------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_a_step_costs(tmp_path: Path, trained: list[dict[str, Any]]) -> None:
    path = recipe(tmp_path, "rollout: {steps: 5, window: {kind: sliding, size: 2}}\nbatch: {groups: 4, forward: 8}")
    done = premeditate("train", path, "--dry-run", "--devices", 2)
    assert done.code == 0, done.err
    assert not trained and list(tmp_path.iterdir()) == [path]
    assert Recipe.model_validate(yaml.safe_load(done.out)).rollout.steps == 5  # all of it, the tables as comments
    for said in (
        r"samples a step +4 groups x 8 = 32",
        r"devices +2, 2 groups \(16 samples\) each",
        r"accumulation +4 micro-batches of at most 8 rows",
        r"0-1, 1-2, 2-3 of 0-4 are stochastic and trained",
        r"rollout +160\n",
        r"update +192\n",
        r"total .* a plain loop makes",
        r"model +micro-base: 1,711,136 parameters, 163,840 trained",
        r"peak +\d.* on 2 devices each",
    ):
        assert re.search(said, done.out), said


def test_a_dry_run_as_json(tmp_path: Path) -> None:
    found = premeditate(
        "train", recipe(tmp_path, "algorithm: {name: nft}\nmodel: {device: cpu}"), "--dry-run", "--json"
    ).json
    assert found["windows"] == [[]] and found["geometry"]["accumulation"] == 4 and found["unknown"] is None
    assert found["forwards"]["total"] > 0 and found["memory"]["peak"] > found["memory"]["held"]["weights"]
    assert found["flops"] == found["memory"]["flops"] * found["forwards"]["total"]
    assert found["recipe"] == Recipe.model_validate(found["recipe"]).model_dump(mode="json")


def test_a_dry_run_of_an_unknown_model_still_counts(tmp_path: Path) -> None:
    done = premeditate("train", recipe(tmp_path), "model.base=nobody/knows-it", "--dry-run")
    assert done.code == 0 and "the configuration of nobody/knows-it is not on this machine" in done.out
    assert "samples a step" in done.out


# -- progress -------------------------------------------------------------------------------------------------------


def test_progress_on_a_terminal_is_one_line_that_changes() -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    console = Console(file=screen, force_terminal=True, width=120, _environ={"TERM": "xterm"})
    with Progress(9, console) as progress:
        for step in range(1, 4):
            progress.figures("step", step, STEP)
        progress.figures("eval", 3, {"eval/a": 0.5, "eval/coverage": 0.25})
        progress.notice("a [bold]notice[/bold] \x1b[2J")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert (
        "step 3     a 0.500  25% scored" in text
        and "a [bold]notice[/bold]" in text
        and "\x1b[2J" not in screen.getvalue()
    )


def test_quiet_progress_says_nothing() -> None:
    screen = io.StringIO()
    with Progress(200, Console(file=screen), quiet=True) as progress:
        progress.figures("step", 1, STEP)
        progress.figures("eval", 1, EVAL)
        progress.notice("x")
    assert screen.getvalue() == ""


def test_figures_in_words() -> None:
    assert evaluated({"eval/x": 0.25, "eval/x/n": 4, "seconds/eval": 1}) == ["x 0.250"]
    assert evaluated({}) == []
    many = {f"reward/r{i}": 0.5 for i in range(9)} | {"coverage": 0.5, "kl": 1e-5}
    assert stepped(many) == [*(f"r{i} 0.500" for i in range(4)), "50% scored", "kl 1e-05"]


# -- shipped recipes ------------------------------------------------------------------------------------------------


def test_every_shipped_recipe_can_be_used() -> None:
    assert shipped()
    for name, path in shipped().items():
        made = load_kind(RECIPES, path, default=EDITOR)
        # How it lies on one device.
        portions(made.batch, 1) if made.kind == "sft" else Geometry.of(made)
        assert callable(trainer(made)), name


def test_an_unknown_kind_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("kind: gpco\n")
    done = premeditate("train", str(tmp_path / "r.yaml"))
    assert done.code == ExitCode.USAGE and 'there is no kind "gpco"; give gcpo' in done.err


@pytest.mark.parametrize(("kind", "said"), [
    ("gcpo", ["# geometry", "traces of each edit    8", "pairs a step           8"]),
    ("sft", ["# geometry", "samples a step     32", "forwards a step    8"]),
])  # fmt: skip
def test_a_dry_run_of_a_judge_says_how_its_batches_lie(kind: str, said: list[str], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"kind: {kind}\n" + ("steps: 5\ndata: {train: x}\n" if kind == "sft" else ""))
    done = premeditate("train", str(tmp_path / "r.yaml"), "--dry-run")
    assert done.code == 0 and yaml.safe_load(done.out)["kind"] == kind
    for line in said:
        assert line in done.out


def test_the_wheel_brings_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = pytest.importorskip("hatchling.build", reason="hatchling is not installed: pip install -e '.[dev]'")
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / builder.build_wheel(str(tmp_path))) as archive:
        archive.extractall(tmp_path / "wheel")
    names = {p.relative_to(ROOT / "recipes") for p in (ROOT / "recipes").rglob("*.yaml")}
    brought = tmp_path / "wheel" / "premeditate" / "recipes"
    assert {p.relative_to(brought) for p in brought.rglob("*.yaml")} == names
    from premeditate.config import load

    monkeypatch.setattr(load, "_PACKAGE", tmp_path / "wheel" / "premeditate")
    assert {path.relative_to(brought) for path in shipped().values()} == names
