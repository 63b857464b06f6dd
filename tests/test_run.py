"""`premeditate run`: many tasks, kept and resumable; what it says at the end."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from micro_fakes import Broken, Oracle, RuleEditor, Stubborn
from premeditate.datasets.tasks import TaskRow, write
from premeditate.editors.base import EditRequest, EditResult
from premeditate.microworld.dataset import row
from premeditate.microworld.tasks import MicroTask, sample_tasks
from premeditate.remote import EndpointError, Health
from premeditate.store import RunStore
from support.command import Install, Outcome, install, premeditate, signalled

N = 6
pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def tasks(tmp_path: Path) -> list[MicroTask]:
    """Six tasks; their list is list/tasks.jsonl."""
    found = list(sample_tasks(N, 1, "test"))
    write(tmp_path / "list", map(row, found))
    return found


@pytest.fixture
def models(tasks: list[MicroTask], monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs models made of rules under every SPEC: perfect ones, or those given."""
    return lambda editor=None, reasoner=None: install(monkeypatch, editor or RuleEditor(), reasoner or Oracle(tasks))


class Endpoint(RuleEditor):
    """A rule editor behind an address that serves two calls at a time."""

    name = "rule editor"

    def __init__(self, host: str, kind: Any = None) -> None:
        super().__init__()
        self.host, self.kind = host, kind

    async def send(self, request: EditRequest, timeout: float | None = None) -> EditResult:
        if self.kind:
            raise EndpointError(self.kind, f"{self.host} said no", "ask somebody else")
        await asyncio.sleep(0)
        return (await self.edit([request]))[0]

    async def health(self) -> Health:
        return Health(capacity=2)

    async def aclose(self) -> None: ...


def run(*words: object) -> Outcome:
    return premeditate("run", "list", "-o", "kept", *words)


def refused(done: Outcome, code: int, *words: str) -> None:
    assert done.code == code, done.err
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert "; " in line, "the mend is missing"
    assert all(word in line for word in words), line


# -- what it does -----------------------------------------------------------------------------------------------------


def test_every_task_is_edited_and_kept(models: Install, tasks: list[MicroTask]) -> None:
    models()
    done = run()
    assert (done.code, done.err) == (0, "")
    assert f"tasks      {N}: {N} verified" in done.out
    assert "rule editor" in done.out
    assert {trace.task.id for trace in RunStore.open("kept")} == {task.id for task in tasks}
    kept = json.loads(Path("kept/summary.json").read_text())
    assert kept["tasks"] == {"total": N, "verified": N, "unverified": 0, "failed": 0, "unfinished": 0}
    assert kept["edits"] == N
    assert kept["stopped"] is None
    assert [load["done"] for load in kept["endpoints"] if load["role"] == "editor"] == [N]
    assert tasks[0].instruction in Path("kept/report.html").read_text(encoding="utf-8")


def test_json_is_the_summary_and_nothing_else(models: Install) -> None:
    models()
    done = run("--json", "--no-report")
    assert (done.code, done.err) == (0, "")
    assert done.json == json.loads(Path("kept/summary.json").read_text())
    assert done.json["report"] is None
    assert not Path("kept/report.html").exists()


def test_not_verified_is_still_an_edit(models: Install) -> None:
    models(editor=Stubborn())
    done = run("--max-rounds", "2", "--no-report", "--json")
    assert done.code == 0
    assert done.json["tasks"]["unverified"] == N
    assert done.json["critiques"] >= N


def test_rows_that_are_no_task_fail_alone(models: Install, tasks: list[MicroTask]) -> None:
    models()
    with Path("list/tasks.jsonl").open("a") as out:
        out.write('{"id": "lost", "image": "nowhere.png", "instruction": "paint it"}\n\n{broken\n')
    Image.new("RGB", (40, 30), "red").save("list/photo.png")
    done = run("--report", "page.html")
    assert done.code == 5
    assert f"tasks      {N + 2}: {N} verified, 2 failed" in done.out
    assert "lost: line 7: there is no picture" in done.out
    assert "line-9: line 9: the line is not JSON" in done.out
    page = Path("page.html").read_text(encoding="utf-8")
    assert "there is no picture" in page
    (lost,) = (t for t in RunStore.open("kept") if t.task.id == "lost")
    assert lost.status == "failed"
    assert "there is no picture" in Path(f"page-traces/{lost.id}.html").read_text(encoding="utf-8")


def test_a_picture_that_a_model_was_not_made_for_costs_no_call(
    models: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Picky(RuleEditor):
        def check(self, image: Image.Image) -> None:
            raise ValueError("this is not a drawing; give a drawing")

    oracle = Oracle([])
    models(editor=Picky(), reasoner=oracle)
    done = run("--json")
    assert done.code == 5
    assert done.json["tasks"]["failed"] == N
    assert done.json["failures"][0]["why"] == "this is not a drawing; give a drawing"
    assert oracle.asked == []


# -- going on ---------------------------------------------------------------------------------------------------------


def test_a_run_is_not_overwritten_but_resumed(models: Install) -> None:
    models()
    assert run().code == 0
    refused(run(), 7, "holds a run already", "--resume")
    editor, oracle = RuleEditor(), Oracle([])
    models(editor=editor, reasoner=oracle)
    again = run("--resume", "--json")
    assert again.code == 0
    assert again.json["tasks"]["verified"] == N
    assert (editor.requests, oracle.asked) == ([], [])
    assert again.json["edits"] == 0, "what the record held is not counted as made"
    refused(run("--resume", "--strategy", "plan"), 2, "strategy think-while-edit, not plan")


def test_a_spent_budget_leaves_the_rest_to_be_resumed(models: Install) -> None:
    models()
    done = run("--max-edits", "2", "--concurrency", "1")
    assert done.code == 5
    assert re.search(rf"tasks      {N}: [12] verified, [45] unfinished", done.out)
    assert "the budget of 2 edits is spent; go on with the same command and --resume" in done.out
    kept = json.loads(Path("kept/summary.json").read_text())
    assert kept["edits"] == 2
    assert "budget" in kept["stopped"]
    editor = RuleEditor()
    models(editor=editor)
    again = run("--resume", "--json")
    assert again.code == 0
    assert again.json["tasks"]["verified"] == N
    assert len(editor.requests) == N - 2


def test_failed_tasks_are_tried_again_only_when_asked_to(models: Install) -> None:
    broken = Broken()
    models(editor=broken)
    first = run("--json")
    assert first.code == 5
    assert first.json["tasks"]["failed"] == N
    assert "out of memory" in first.json["failures"][0]["why"]
    calls = len(broken.requests)
    second = run("--resume", "--json")
    assert second.code == 5
    assert second.json["tasks"]["failed"] == N
    assert len(broken.requests) == calls
    models()
    third = run("--resume", "--retry-failed", "--json")
    assert third.code == 0
    assert third.json["tasks"]["verified"] == N
    fourth = run("--resume", "--json")
    assert fourth.json["tasks"]["verified"] == N, "the last try counts"


def test_what_is_wrong_is_said_before_a_model_is_loaded(tasks: list[MicroTask]) -> None:
    refused(premeditate("run", "nowhere", "-o", "kept"), 2, "no tasks at nowhere")
    Path("empty.jsonl").write_text("\n\n")
    refused(premeditate("run", "empty.jsonl", "-o", "kept"), 2, "holds no task")
    refused(run("--strategy", "dance"), 2, "dance")
    refused(run("--report", "empty.jsonl/x.html"), 6, "empty.jsonl")
    refused(premeditate("run", "list", "-o", "empty.jsonl"), 7, "is a file")
    refused(premeditate("run", "list", "-o", "list"), 7, "something else")
    assert not Path("kept").exists()


SLOW = """
import asyncio, signal, sys
sys.path.insert(0, {tests!r})
signal.signal(signal.SIGINT, signal.default_int_handler)  # as at a terminal, even where the tests run in the background
from micro_fakes import Oracle, RuleEditor
from premeditate import presets
from premeditate.microworld.tasks import sample_tasks
class Slow(RuleEditor):
    async def edit(self, requests):
        if self.requests:
            print("editing", file=sys.stderr, flush=True)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                print("told to stop", file=sys.stderr, flush=True)
                raise
        return await super().edit(requests)
presets.load_editor = lambda spec, **_: Slow()
presets.load_reasoner = lambda spec, **_: Oracle(sample_tasks({n}, 1, "test"))
from premeditate.cli import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_in_order(models: Install, tmp_path: Path, number: signal.Signals) -> None:
    """Calls in flight are told, what was made is kept, and the line says how to go on."""
    script = SLOW.format(tests=str(Path(__file__).parent), n=N)
    done = signalled(script, "run", "list", "-o", "kept", "--concurrency", "1", cwd=tmp_path, number=number)
    assert done.code == 130
    assert done.err.splitlines() == [
        "told to stop",
        f"premeditate: interrupted; 1 of {N} tasks are done; go on with the same command and --resume",
    ]
    assert json.loads(Path("kept/summary.json").read_text())["stopped"] == "interrupted"
    models()
    assert run("--resume", "--json").json["tasks"]["verified"] == N


# -- endpoints --------------------------------------------------------------------------------------------------------


def test_endpoints_are_counted_one_by_one(models: Install) -> None:
    good = [Endpoint("a:1"), Endpoint("b:2")]
    models(editor=good)
    done = run("--json")
    assert done.code == 0, done.err
    rows = {load["name"]: load for load in done.json["endpoints"] if load["role"] == "editor"}
    assert {name: load["done"] for name, load in rows.items()} == {e.host: len(e.requests) for e in good}
    assert sum(load["done"] for load in rows.values()) == N
    assert all(load["capacity"] == 2 for load in rows.values())


def test_a_failing_endpoint_shows_in_the_summary(models: Install) -> None:
    models(editor=[Endpoint("good:1"), Endpoint("bad:2", "denied")])
    done = run()
    assert done.code == 0, done.err
    (bad,) = (line for line in done.out.splitlines() if "bad:2" in line)
    assert re.search(r"0/2 +0 +0 +[1-9]", bad), bad


# -- rows and memory --------------------------------------------------------------------------------------------------


def test_tasks_are_drawn_as_there_is_room(models: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more pictures are decoded ahead than tasks may be in work."""
    from premeditate.datasets import tasks as module

    models()
    seen: list[int] = []
    editor = RuleEditor()
    decoded = 0
    real = module._picture

    def counting(*words: Any) -> Image.Image:
        nonlocal decoded
        decoded += 1
        seen.append(decoded - len(editor.requests))
        return real(*words)

    monkeypatch.setattr(module, "_picture", counting)
    models(editor=editor)
    assert run("--concurrency", "2", "--json").json["tasks"]["verified"] == N
    assert decoded == N
    assert max(seen) <= 3


def test_ids_may_be_anything(models: Install, tasks: list[MicroTask]) -> None:
    odd = [
        TaskRow(name, row(tasks[k]).images, tasks[k].instruction)
        for k, name in enumerate(["../a", "ż b", "-", "x" * 200])
    ]
    write(Path("odd"), odd)
    models()
    done = premeditate("run", "odd", "-o", "kept", "--json")
    assert done.json["tasks"]["verified"] == 4, done.json["failures"]
