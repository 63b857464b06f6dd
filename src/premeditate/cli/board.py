"""A run of many tasks as it happens: what is done, what each model or endpoint is doing, how long it will take.

On a terminal a table that is drawn anew four times a second, on stderr; elsewhere a line every ten seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from premeditate.cli.progress import say
from premeditate.engine.seat import Load
from premeditate.trace import Event, RoundCritiqued, RoundEdited, Trace

STATUSES = {"verified": "verified", "unverified": "not verified", "failed": "failed", "unfinished": "unfinished"}
STYLES = {"verified": "green", "unverified": "yellow", "failed": "red", "unfinished": "dim"}
DRAW, LINE = 0.25, 10.0
"""Seconds between two pictures on a terminal, and between two lines elsewhere."""


class Board:
    """What is known of a run. `total`: its tasks, as far as known. `clock`: seconds, only differences matter.

    Give `on_event` to the engine and every trace that comes back to `ended`.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self._clock, self._began = total, clock, clock()
        self.statuses: Counter[str] = Counter()
        self.edits = self.critiques = 0
        """Made by this command; what the record held already is not counted."""
        self.fresh = 0
        """Tasks that this command worked on and ended."""
        self.failures: list[tuple[str, str]] = []
        """(task id, why) of the first ten that failed."""
        self.loads: Sequence[Load] = ()
        self._touched: set[str] = set()

    def on_event(self, trace: Trace, event: Event) -> None:
        self._touched.add(trace.id)
        match event:
            case RoundEdited():
                self.edits += len(event.edits)
            case RoundCritiqued():
                self.critiques += 1

    def ended(self, trace: Trace) -> None:
        self.statuses[trace.status] += 1
        if trace.id in self._touched:
            self._touched.discard(trace.id)
            self.fresh += trace.finished
        if trace.status == "failed" and len(self.failures) < 10:
            self.failures.append((trace.task.id, trace.error or "no edit was made"))

    @property
    def done(self) -> int:
        """Tasks that came to an end, now or earlier."""
        return sum(n for kind, n in self.statuses.items() if kind != "unfinished")

    @property
    def unfinished(self) -> int:
        """Tasks that were begun and not ended, or not begun."""
        return max(0, self.total - self.done)

    @property
    def seconds(self) -> float:
        return self._clock() - self._began

    @property
    def rate(self) -> float | None:
        """Tasks per second; None before the first has ended."""
        return self.fresh / self.seconds if self.fresh and self.seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        return self.unfinished / self.rate if self.rate else None

    @property
    def in_flight(self) -> int:
        return sum(load.in_flight for load in self.loads if load.role == "editor")

    # -- in words ------------------------------------------------------------------------------------------------------

    def counts(self) -> str:
        """Statuses that occur, in words."""
        found = [f"{self.statuses[kind]} {label}" for kind, label in STATUSES.items() if self.statuses[kind]]
        return ", ".join(found) or "none yet"

    def line(self) -> str:
        """The state of the run on one line."""
        parts = [f"{self.done}/{self.total} tasks: {self.counts()}", f"{self.in_flight} edits in flight"]
        if self.rate:
            parts.append(pace(self.rate))
        if self.seconds_left is not None and self.unfinished:
            parts.append(f"{duration(self.seconds_left)} left")
        if down := [load.name for load in self.loads if load.state != "closed"]:
            parts.append(f"down: {', '.join(dict.fromkeys(down))}")
        return "; ".join(parts)

    def __rich__(self) -> RenderableType:
        bar = Table.grid(padding=(0, 2))
        counts = Text(", ").join(
            Text(f"{self.statuses[kind]} {label}", STYLES[kind])
            for kind, label in STATUSES.items()
            if self.statuses[kind]
        )
        left = f"{duration(self.seconds_left)} left" if self.seconds_left is not None and self.unfinished else ""
        bar.add_row(
            ProgressBar(max(1, self.total), self.done, width=24), f"{self.done}/{self.total}", counts,
            Text("  ".join(filter(None, (pace(self.rate) if self.rate else "", duration(self.seconds), left))), "dim"),
        )  # fmt: skip
        return Group(bar, loads_table(self.loads)) if self.loads else bar


def loads_table(loads: Sequence[Load]) -> Table:
    """One row per endpoint or model."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("endpoint", no_wrap=True, max_width=40)
    table.add_column("")
    for name in ("in flight", "waiting", "done", "failed"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for load in loads:
        flight = str(load.in_flight) + ("" if load.capacity is None else f"/{load.capacity}")
        state, style = {"closed": ("up", "green"), "open": ("down", "red"), "half-open": ("asked again", "yellow")}[
            load.state
        ]
        failed = Text(str(load.failed), "red" if load.failed else "")
        table.add_row(say(load.name), load.role, flight, str(load.queued), str(load.done), failed, Text(state, style))
    return table


def pace(rate: float) -> str:
    """Tasks per second, minute or hour, whichever reads best."""
    for per, seconds in (("s", 1), ("min", 60)):
        if rate * seconds >= 1:
            return f"{rate * seconds:.1f} tasks/{per}"
    return f"{rate * 3600:.1f} tasks/h"


def duration(seconds: float) -> str:
    """Seconds in words, coarser the longer."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 60 * 48:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes / 1440:.1f} days"


class Display(AbstractContextManager["Display"]):
    """Shows a board on `console` while `watch()` runs as a task beside the engine. `quiet`: shows nothing."""

    def __init__(self, board: Board, console: Console, *, quiet: bool = False) -> None:
        self.board, self.console, self.quiet = board, console, quiet
        fancy = not quiet and console.file.isatty() and not console.is_dumb_terminal
        self.live = Live(board, console=console, auto_refresh=False, transient=True) if fancy else None

    def __enter__(self) -> Display:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    async def watch(self, loads: Callable[[], Sequence[Load]], every: float | None = None) -> None:
        """Goes on until it is cancelled. `every`: seconds between two pictures, or two lines."""
        while True:
            await asyncio.sleep(every or (DRAW if self.live else LINE))
            self.board.loads = loads()
            if self.live:
                self.live.update(self.board, refresh=True)
            elif not self.quiet:
                self.console.print(self.board.line(), markup=False, highlight=False, soft_wrap=True)
