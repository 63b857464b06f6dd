"""`premeditate run`: many tasks, kept and resumable; what it shows while it runs, and what it says at the end."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from micro_fakes import Oracle, RuleEditor
from premeditate import presets
from premeditate.cli.board import Board, Display, duration, pace
from premeditate.datasets.tasks import TaskRow, write
from premeditate.editors.base import EditRequest, EditResult
from premeditate.engine.seat import Load
from premeditate.microworld.dataset import row
from premeditate.microworld.tasks import MicroTask, sample_tasks
from premeditate.remote import EndpointError, Health
from premeditate.store import RunStore
from premeditate.trace import (
    Chain,
    Critique,
    Edit,
    Event,
    ImageRef,
    Plan,
    PlanWritten,
    Round,
    RoundCritiqued,
    RoundEdited,
    Selection,
    Task,
    Trace,
)
from test_cli import Outcome, premeditate

N = 6


@pytest.fixture
def tasks(tmp_path: Path) -> list[MicroTask]:
    """Six tasks; their list is list/tasks.jsonl."""
    found = list(sample_tasks(N, 1, "test"))
    write(tmp_path / "list", map(row, found))
    return found


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


Install = Callable[..., None]


@pytest.fixture
def models(tasks: list[MicroTask], monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs models made of rules under every SPEC: perfect ones, or those given."""

    def install(editor: object | None = None, reasoner: object | None = None) -> None:
        monkeypatch.setattr(presets, "load_editor", lambda spec, **_: editor or RuleEditor())
        monkeypatch.setattr(presets, "load_reasoner", lambda spec, **_: reasoner or Oracle(tasks))

    return install


class Stubborn(RuleEditor):
    """Hands every picture back untouched."""

    async def edit(self, requests: Sequence[EditRequest]) -> list[EditResult]:
        self.requests.extend(requests)
        return [EditResult(request.images[0].copy()) for request in requests]


class Broken(RuleEditor):
    async def edit(self, requests: Sequence[EditRequest]) -> list[EditResult]:
        self.requests.extend(requests)
        return [EditResult(None, error="out of memory") for _ in requests]


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


def test_what_is_wrong_is_said_before_a_model_is_loaded(tasks: list[MicroTask], monkeypatch: Any) -> None:
    def none(spec: str, **_: object) -> object:
        raise AssertionError(f"the model {spec} was loaded")

    monkeypatch.setattr(presets, "load_editor", none)
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
    words = ["run", "list", "-o", "kept", "--concurrency", "1"]
    running = subprocess.Popen(
        [sys.executable, "-c", script, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stderr is not None
    assert running.stderr.readline() == "editing\n"
    running.send_signal(number)
    began = time.monotonic()
    _, err = running.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert running.returncode == 130
    assert err.splitlines() == [
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


# -- the display ------------------------------------------------------------------------------------------------------


def trace(name: str, status: str) -> Trace:
    ref = ImageRef(sha256="0" * 64, width=4, height=4)
    edit = Edit(prompt="x", base="original", source=ref, image=ref, seed=0)
    chosen = Selection(chain=0, round=0, verified=status == "verified", reason="")
    return Trace(
        id=name,
        task=Task(id=name, images=(ref,), instruction="x"),
        chains=(Chain(rounds=(Round(edits=(edit,)),)),),
        selection=chosen if status in ("verified", "unverified") else None,
        error="it [red]broke" if status == "failed" else None,
        finished=status != "unfinished",
    )


def event(of: Trace) -> Event:
    return RoundEdited(chain=0, edits=of.chains[0].rounds[0].edits)


def board_at(total: int) -> tuple[Board, list[float]]:
    now = [100.0]
    return Board(total, clock=lambda: now[0]), now


def text(shown: Any, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(shown)
    return out.getvalue()


def test_the_board_counts_rate_and_time_left_by_what_was_worked_on() -> None:
    board, now = board_at(20)
    assert (board.rate, board.seconds_left, board.unfinished) == (None, None, 20)
    for k in range(5):  # held by the record: no event came
        board.ended(trace(f"old{k}", "verified"))
    for k, status in enumerate(("verified", "unverified", "failed", "verified", "unfinished")):
        one = trace(f"new{k}", status)
        board.on_event(one, PlanWritten(chain=0, plan=Plan()))
        board.on_event(one, event(one))
        board.on_event(one, RoundCritiqued(chain=0, round=0, critique=Critique(status="scored")))
        now[0] += 2
        board.ended(one)
    assert board.statuses == {"verified": 7, "unverified": 1, "failed": 1, "unfinished": 1}
    assert (board.done, board.unfinished, board.fresh) == (9, 11, 4)
    assert (board.edits, board.critiques) == (5, 5)
    assert board.rate == pytest.approx(0.4)
    assert board.seconds_left == pytest.approx(27.5)
    assert board.failures == [("new2", "it [red]broke")]
    assert board.line() == (
        "9/20 tasks: 7 verified, 1 not verified, 1 failed, 1 unfinished; 0 edits in flight; 24.0 tasks/min; 28 s left"
    )


def test_the_board_shows_every_endpoint() -> None:
    board, _ = board_at(4)
    board.ended(trace("a", "verified"))
    board.loads = [
        Load("a:1", "editor", 2, 7, 4, 31, 1),
        Load("[b]:2", "editor", 1, 0, None, 0, 3, "open"),
        Load("critic", "reasoner", 5, 0, 8, 12, 0, "half-open"),
    ]
    shown = text(board).splitlines()
    assert "1/4" in shown[0]
    assert "1 verified" in shown[0]
    rows = [line.split() for line in shown[2:]]
    assert rows[0] == ["a:1", "editor", "2/4", "7", "31", "1", "up"]
    assert rows[1] == ["[b]:2", "editor", "1", "0", "0", "3", "down"], "a name is no markup"
    assert rows[2] == ["critic", "reasoner", "5/8", "0", "12", "0", "asked", "again"]
    assert "3 edits in flight" in board.line()
    assert "down: [b]:2, critic" in board.line()
    assert max(map(len, text(board, 60).splitlines())) <= 60


def test_words_for_time_and_pace() -> None:
    assert [duration(s) for s in (0, 99, 100, 3600, 6000, 90_000, 400_000)] == [
        "0 s", "99 s", "2 min", "60 min", "1 h 40 min", "25 h 00 min", "4.6 days",
    ]  # fmt: skip
    assert [pace(r) for r in (12, 0.5, 0.001)] == ["12.0 tasks/s", "30.0 tasks/min", "3.6 tasks/h"]


def watched(console: Console, board: Board, *, quiet: bool = False) -> None:
    async def go() -> None:
        with Display(board, console, quiet=quiet) as display:
            watcher = asyncio.create_task(display.watch(lambda: [Load("a:1", "editor", 3)], every=0.01))
            await asyncio.sleep(0.1)
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    asyncio.run(go())


def test_elsewhere_than_on_a_terminal_it_is_plain_lines() -> None:
    out = io.StringIO()
    board, _ = board_at(4)
    watched(Console(file=out, force_terminal=True), board)  # as with FORCE_COLOR in a CI log
    lines = out.getvalue().splitlines()
    assert len(lines) >= 2
    assert set(lines) == {"0/4 tasks: none yet; 3 edits in flight"}
    quiet = io.StringIO()
    watched(Console(file=quiet), board, quiet=True)
    assert quiet.getvalue() == ""


def test_on_a_terminal_it_is_drawn_in_place_and_taken_away(models: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as out:
        monkeypatch.setenv("TERM", "xterm")
        watched(Console(file=out, width=90, force_terminal=True), board_at(4)[0])
        out.flush()
        seen = os.read(leader, 1 << 20).decode()
    os.close(leader)
    assert "0/4" in seen
    assert "a:1" in seen
    assert "\x1b[1A" in seen, "it goes up and draws over what it drew"
    assert seen.count("\n") > 4


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
