"""What a run of many tasks shows while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pty
from typing import Any

import pytest
from rich.console import Console

from premeditate.cli.board import Board, Display, duration, pace
from premeditate.engine.seat import Load
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
    asked = 0

    def loads() -> list[Load]:
        nonlocal asked
        asked += 1
        return [Load("a:1", "editor", 3)]

    async def go() -> None:
        with Display(board, console, quiet=quiet) as display:
            watcher = asyncio.create_task(display.watch(loads, every=0.01))
            while asked < 6:  # a busy machine takes its time
                await asyncio.sleep(0.01)
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


def test_on_a_terminal_it_is_drawn_in_place_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
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
