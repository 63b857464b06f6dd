"""Data as it is made, in a terminal: the shard in work, what is kept and what is not, how long it will take."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from premeditate.cli.board import DRAW, LINE, duration, pace
from premeditate.cli.progress import Waiting, line, say

if TYPE_CHECKING:
    from premeditate.synthesis.parts import Parts
    from premeditate.synthesis.shard import Counts


class Progress(Waiting):
    """Of `total` shards `whole` are there, and `missing` with `tasks` tasks are to be made: the others may be another
    machine's. On a terminal a line that changes, else one every ten seconds. `quiet`: nothing."""

    def __init__(
        self, console: Console, whole: int, missing: int, total: int, tasks: int, *, quiet: bool = False
    ) -> None:
        super().__init__(console, "loading the models", quiet=quiet)
        self.whole, self.missing, self.total, self.all_tasks = whole, missing, total, tasks
        self.began: float | None = None  # when the models were there
        self.done = self.tasks = self.kept = 0
        self.lost: Counter[str] = Counter()
        self.stage = ""

    def stage_of(self, stage: str, total: int) -> None:
        self.began = time.monotonic() if self.began is None else self.began
        self.stage = f"{stage} ({total:,})"

    def made(self, number: int, counts: Counts) -> None:
        self.done += 1
        self.tasks += counts.tasks
        self.kept += counts.kept
        self.lost.update(counts.lost)

    def text(self, in_flight: int = 0) -> str:
        """The state on one line."""
        parts = [f"shard {self.whole + min(self.done + 1, self.missing)}/{self.total}"]
        parts += [self.stage] if self.stage else []
        parts += [f"{in_flight} calls in flight"] if in_flight else []
        parts.append(f"{self.kept:,} edits kept" + "".join(f", {n:,} {what}" for what, n in self.lost.items()))
        if self.tasks and self.began is not None:
            rate = self.tasks / (time.monotonic() - self.began)
            parts += [pace(rate), f"{duration((self.all_tasks - self.tasks) / rate)} left"]
        return "; ".join(parts)

    async def watch(self, parts: Parts) -> None:
        """Shows it until it is cancelled."""
        while True:
            await asyncio.sleep(DRAW if self.status else LINE)
            text = self.text(parts.in_flight())
            if self.status:
                self.status.update(f"[dim]{say(text)}[/dim]")
            elif not self.quiet:
                self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def show(found: Mapping[str, Any], folder: str, again: str) -> None:
    """What a run came to, from its datasheet."""
    console = Console()
    shards, edits = found["shards"], found["edits"]
    line(console, "shards", f"{shards['whole']} of {shards['total']}, {found['tasks']:,} tasks")
    line(console, "edits", f"{edits['kept']:,} of {edits['asked']:,} kept")
    for what, lost in found["lost"].items():
        if lost["count"]:
            why = next(iter(lost["reasons"]), "")
            line(console, "", f"[yellow]{lost['count']:,} {lost['of']}: {what}[/yellow]  [dim]{say(why)}[/dim]")
    for name, one in found["candidates"].items():
        rate, kept = one["accuracy"], one["chosen"]
        told = "-" if rate["value"] is None else f"{rate['value']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
        label = "accuracy" if name == next(iter(found["candidates"])) else ""
        line(console, label, f"{told}  {say(name)}  [dim]kept {kept:,} times[/dim]")
    line(console, "datasheet", say(f"{folder}/datasheet.md"))
    if shards["missing"]:
        line(console, "unfinished", f"{len(shards['missing'])} shards are missing; {say(again)}", "yellow")


def show_calls(calls: Mapping[str, Any]) -> None:
    """What a run would take."""
    console = Console()
    line(console, "shards", f"{calls['shards']['missing']} of {calls['shards']['total']} to make")
    for label, what in (("tasks", "tasks"), ("edits", "edits")):
        line(console, label, f"{calls[what]:,}")
    for number, (name, count) in enumerate(calls["calls"].items()):
        told = "not known" if count is None else f"{count:,}"
        line(console, "" if number else "calls", f"{told:>12}  {say(name)}")
    for note in calls["notes"]:
        line(console, "note", f"[yellow]{say(note)}[/yellow]")
