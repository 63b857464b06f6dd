"""A training run as it happens, in a terminal: its steps and its evaluations."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console

from premeditate.cli.board import duration
from premeditate.cli.progress import Waiting, line, say

LINE = 10.0
"""Seconds between two lines of progress, where there is no terminal to draw on."""
SHOWN = 4
"""Rewards on a line of progress."""


class Progress(Waiting):
    """A run on a console: a line that changes on a terminal, else one every `LINE` seconds. Evaluations and notices
    stay. `steps`: of the run, where they are known before it begins. `quiet`: nothing."""

    def __init__(self, steps: int | None, console: Console, *, quiet: bool = False) -> None:
        super().__init__(console, "loading the model", quiet=quiet)
        self.steps, self.began = steps, time.monotonic()
        self._first: tuple[int, float] | None = None  # step and time of the first step of this process
        self._said = -LINE

    def notice(self, text: str) -> None:
        if not self.quiet:
            line(self.console, "", say(text), "dim")

    def figures(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        """A step or an evaluation that is done."""
        if self.quiet:
            return
        if kind == "eval":
            line(self.console, f"step {step}", "  ".join(evaluated(figures)) or "[dim]nothing was scored[/dim]")
        elif kind == "step":
            self._step(step, figures)

    def _step(self, step: int, figures: Mapping[str, float]) -> None:
        now = time.monotonic()
        self._first = self._first or (step, now)
        parts = [f"step {step}" + (f"/{self.steps}" if self.steps else ""), *stepped(figures)]
        if self.steps and step > self._first[0]:
            pace = (now - self._first[1]) / (step - self._first[0])
            parts.append(f"{duration(pace * (self.steps - step))} left")
        if self.status:
            self.status.update(f"[dim]{'  '.join(parts)}[/dim]")
        elif now - self._said >= LINE or step == self.steps:
            self._said = now
            self.console.print("  ".join(parts), markup=False, highlight=False, soft_wrap=True)


def evaluated(figures: Mapping[str, float]) -> list[str]:
    """The held-out figures of an evaluation with their intervals."""
    found = []
    for name, value in figures.items():
        if name.startswith("eval/") and not name.endswith(("/low", "/high", "/n")) and name != "eval/coverage":
            low, high = (figures.get(f"{name}/{side}") for side in ("low", "high"))
            interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
            found.append(f"{name.removeprefix('eval/')} {value:.3f}{interval}")
    if figures.get("eval/coverage", 1.0) < 1:
        found.append(f"{figures['eval/coverage']:.0%} scored")
    return found


def stepped(figures: Mapping[str, float]) -> list[str]:
    """What matters of a step."""
    rewards = [f"{k.removeprefix('reward/')} {v:.3f}" for k, v in figures.items() if k.startswith("reward/")]
    found = rewards[:SHOWN]
    if "groups/informative" in figures:
        found.append(f"{figures['groups/informative']:.0%} of groups inform")
    if figures.get("coverage", 1.0) < 1:
        found.append(f"{figures['coverage']:.0%} scored")
    found += [f"{name} {figures[name]:.3g}" for name in ("loss", "kl") if name in figures]
    if seconds := [v for k, v in figures.items() if k in ("seconds/sample", "seconds/reward", "seconds/update")]:
        found.append(f"{sum(seconds):.2g} s")
    return found
