"""The `premeditate` command: what it prints, writes and returns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from micro_fakes import Oracle, RuleEditor, Stubborn
from premeditate.microworld.render import render
from premeditate.microworld.tasks import MicroTask
from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.store import RunStore
from support.command import Install, install, premeditate, premeditate_process

pytestmark = pytest.mark.usefixtures("alone")


class Talker(Oracle):
    """Plans in words that a terminal or a page could obey."""

    def _one(self, request: ChatRequest) -> Completion:
        if request.text.startswith("plan"):
            return Completion(text="\x1b[31m[bold]remove[/bold] a1\x07 <script>alert(1)</script>")
        return super()._one(request)


# -- edit -------------------------------------------------------------------------------------------------------------


def test_edit_ends_with_the_files_and_verified(task: MicroTask, models: Install, tmp_path: Path) -> None:
    models()
    done = premeditate("edit", "scene.png", task.instruction)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == task.instruction
    for words in (
        "plan       1. " + task.plan[0],
        "round 1",
        "p(yes) 90",
        "chosen     round 1: ",
        "image      scene-edited.png",
        "report     scene-edited.html",
    ):
        assert words in done.out, words
    assert all(item.question in done.out for item in task.checklist)
    assert lines[-1].startswith("verified")
    assert "\x1b" not in done.out
    with Image.open("scene-edited.png") as edited:
        assert edited.convert("RGB").tobytes() == render(task.target).tobytes()
    assert task.instruction in Path("scene-edited.html").read_text(encoding="utf-8")
    (run,) = (tmp_path / "runs").iterdir()
    assert str(run.relative_to(tmp_path)) in done.out
    (trace,) = RunStore.open(run)
    assert trace.verified


def test_json_is_one_object_and_nothing_else(task: MicroTask, models: Install) -> None:
    models()
    done = premeditate(
        "edit", "scene.png", task.instruction, "-o", "a/b/out.png", "--store", "kept", "--seed", "5", "--json"
    )
    assert (done.code, done.err) == (0, "")
    found = done.json
    assert {"verified", "rounds", "chosen_round", "checklist", "image", "trace", "seconds"} <= set(found)
    assert found["verified"] is True
    assert (found["rounds"], found["chosen_round"]) == (1, 0)
    assert (found["image"], found["report"], found["store"]) == ("a/b/out.png", "a/b/out.html", "kept")
    assert [set(item) for item in found["checklist"]] == [{"question", "dimension", "status", "yes", "p_yes"}] * len(
        task.checklist
    )
    assert found["settings"]["seed"] == 5
    assert RunStore.open("kept").trace(found["trace"]).verified
    assert Path("a/b/out.html").exists()


def test_not_verified_is_exit_code_1_with_the_best_round_written(task: MicroTask, models: Install) -> None:
    models(editor=Stubborn())
    done = premeditate("edit", "scene.png", task.instruction, "--max-rounds", "2", "--no-report", "--store", "kept")
    assert done.code == 1
    assert done.out.splitlines()[-1].startswith("not verified")
    assert "round 2" in done.out
    assert "critique" in done.out
    assert Path("scene-edited.png").exists()
    assert not Path("scene-edited.html").exists()


def test_chains_are_told_apart(task: MicroTask, models: Install) -> None:
    models()
    done = premeditate("edit", "scene.png", task.instruction, "--chains", "2", "--json")
    assert done.json["chains"] == 2
    done = premeditate("edit", "scene.png", task.instruction, "--chains", "2")
    assert "chain 1" in done.out
    assert "chain 2" in done.out


def test_what_the_record_holds_is_not_made_again(task: MicroTask, models: Install) -> None:
    models()
    first = premeditate("edit", "scene.png", task.instruction, "--store", "kept", "--json").json
    editor = RuleEditor()
    models(editor=editor)
    again = premeditate("edit", "scene.png", task.instruction, "--store", "kept")
    assert again.code == 0
    assert "nothing was run again" in again.out
    assert editor.requests == []
    assert RunStore.open("kept").traces() == [first["trace"]]


def test_words_of_a_model_have_no_power_over_the_terminal(task: MicroTask, models: Install) -> None:
    models(reasoner=Talker([task]))
    done = premeditate("edit", "scene.png", task.instruction)
    assert done.code in (0, 1)
    assert "\x1b" not in done.out
    assert "\x07" not in done.out
    assert "[bold]remove[/bold] a1" in done.out
    assert "<script>alert" not in Path("scene-edited.html").read_text(encoding="utf-8")


# -- report, bench, microworld ----------------------------------------------------------------------------------------


def test_report_of_a_run(task: MicroTask, models: Install) -> None:
    models()
    premeditate("edit", "scene.png", task.instruction, "--store", "kept")
    done = premeditate("report", "kept")
    assert (done.code, done.out.strip()) == (0, "kept/report.html")
    models(editor=Stubborn())
    premeditate("edit", "scene.png", task.instruction, "--store", "kept", "--seed", "1")
    done = premeditate("report", "kept", "-o", "all.html")
    assert done.out.strip() == "all.html and 2 reports beside it"
    assert "1 verified · 1 not verified" in Path("all.html").read_text(encoding="utf-8")
    assert len(list(Path("all-traces").glob("*.html"))) == 2
    name = RunStore.open("kept").traces()[0]
    assert premeditate("report", "kept", "--trace", name, "-o", "one.html").code == 0
    assert premeditate("report", "kept", "--trace", "nobody").code == 7


def test_report_of_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("")
    for name in ("nothing", "folder"):
        done = premeditate("report", name)
        assert done.code == 7
        assert len(done.err.splitlines()) == 1


def test_bench_prints_a_table_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    from premeditate.microworld.tasks import sample_tasks

    tasks = list(sample_tasks(24, 1, "test"))
    install(monkeypatch, RuleEditor(), Oracle(tasks))
    go = ("bench", "run", "microworld", "--n", "24", "--seed", "1", "--strategy", "plan")
    done = premeditate(*go, "--json", "--store", "kept")
    assert (done.code, done.err) == (0, "")
    assert done.json["success"]["k"] == done.json["success"]["n"] == 24
    assert len(RunStore.open("kept").traces()) == 24
    table = premeditate(*go)
    assert table.code == 0
    assert "100.0 %" in table.out
    assert premeditate("report", "kept").out.strip() == "kept/report.html and 24 reports beside it"
    refused_split = premeditate("bench", "run", "microworld", "--split", "holiday")
    assert refused_split.code == 2


def test_sample_writes_tasks_once(tmp_path: Path) -> None:
    from premeditate.datasets.tasks import read

    done = premeditate("microworld", "sample", "5", "-o", "tasks", "--seed", "2", "--split", "ood")
    assert (done.code, done.out.strip()) == (0, "5 tasks in tasks")
    assert len(list(read(tmp_path / "tasks"))) == 5
    again = premeditate("microworld", "sample", "5", "-o", "tasks")
    assert again.code == 2
    assert len(again.err.splitlines()) == 1
    assert premeditate("microworld", "sample", "0", "-o", "none").code == 2


def test_help_says_every_exit_code() -> None:
    from premeditate.errors import ExitCode

    text = " ".join(premeditate("edit", "--help").out.split())
    assert all(str(int(code)) in text for code in ExitCode)
    for words in (
        (),
        ("bench",),
        ("microworld",),
        ("report", "--help"),
        ("bench", "run", "-h"),
        ("microworld", "train", "-h"),
    ):
        assert "Usage: premeditate" in (done := premeditate(*words)).out + done.err


# -- with the tiny models of the package ------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "src" / "premeditate" / "microworld" / "weights"
shipped = pytest.mark.skipif(
    not all((WEIGHTS / name).is_dir() for name in ("editor", "reasoner")), reason="the tiny models are not in this tree"
)


@shipped
@pytest.mark.slow
def test_the_first_command_of_the_readme(tmp_path: Path) -> None:
    (command,) = re.findall(r"premeditate (edit examples/\S+) \"(.+?)\"", (ROOT / "README.md").read_text())
    words, instruction = command
    picture = str(ROOT / words.split()[1])
    assert f'{words} "{instruction}"' in (ROOT / "examples" / "README.md").read_text()
    done = premeditate_process("edit", picture, instruction, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1].startswith("verified")
    with Image.open(tmp_path / "odd-one-out-edited.png") as edited, Image.open(picture) as source:
        assert edited.size == source.size
    assert "Verified" in (tmp_path / "odd-one-out-edited.html").read_text(encoding="utf-8")
    exact = premeditate_process("edit", picture, instruction, "--verifier", "exact", "--json", cwd=tmp_path)
    assert exact.json["verified"] is True


@shipped
@pytest.mark.slow
def test_a_photograph_is_no_scene_for_the_tiny_models(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((320, 200)).convert("RGB").save(tmp_path / "photo.jpg")
    for extra in ((), ("--json",)):
        done = premeditate_process("edit", "photo.jpg", "paint the odd one out green", *extra, cwd=tmp_path)
        assert done.code == 3
        (line,) = done.err.splitlines()
        assert "not a micro-world scene" in line
        assert "--editor" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photo.jpg"]


def test_the_examples_are_what_their_script_draws(tmp_path: Path) -> None:
    import runpy

    runpy.run_path(str(ROOT / "examples" / "make.py"))["main"](tmp_path)
    drawn = sorted(tmp_path.glob("*.png"))
    assert [p.name for p in drawn] == sorted(p.name for p in (ROOT / "examples").glob("*.png"))
    for path in drawn:
        with Image.open(path) as one, Image.open(ROOT / "examples" / path.name) as other:
            assert one.tobytes() == other.tobytes()
