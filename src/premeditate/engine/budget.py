"""A ceiling for a whole run: edits, reasoner tokens, seconds. What it stops is left unfinished, to be resumed."""

from __future__ import annotations

import time
from dataclasses import dataclass


class BudgetSpent(Exception):
    """The run may not begin this call. Not a failure of the task: its trace stays open."""


@dataclass(frozen=True)
class Budget:
    """None: no ceiling. Counted from the start of this run; calls in flight when the last edit or token is spent are
    finished and kept, calls in flight when the seconds are over are cancelled."""

    edits: int | None = None
    tokens: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("edits", "tokens", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"budget: {name} is {value}; give more than 0, or leave it out")


class Meter:
    """What was spent of a budget so far."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.edits = self.tokens = 0
        self._too_many = 0
        self._start = time.monotonic()

    @property
    def seconds_left(self) -> float | None:
        if self.budget.seconds is None:
            return None
        return max(0.0, self.budget.seconds - (time.monotonic() - self._start))

    def spent(self) -> str | None:
        """Which ceiling is reached, in words; None: none."""
        if self.budget.edits is not None and self.edits >= self.budget.edits:
            return f"the budget of {self.budget.edits} edits is spent"
        if self._too_many:
            return f"the next round needs {self._too_many} edits, more than the budget of {self.budget.edits} has left"
        return self._silenced()

    def _silenced(self) -> str | None:
        if self.budget.tokens is not None and self.tokens >= self.budget.tokens:
            return f"the budget of {self.budget.tokens} tokens is spent"
        if self.seconds_left == 0.0:
            return f"the budget of {self.budget.seconds:g} s is spent"
        return None

    def begin_edits(self, n: int) -> None:
        """Counts a round's edits before the first goes out: no number of tasks can overrun the ceiling together, and no
        round is broken off, since only whole ones are recorded."""
        if self.budget.edits is not None and self.edits + n > self.budget.edits:
            self._too_many = n
        if words := self.spent():
            raise BudgetSpent(words)
        self.edits += n

    def begin_question(self) -> None:
        """Raises `BudgetSpent` where the reasoner may not be asked any more. The last edits are still looked at."""
        if words := self._silenced():
            raise BudgetSpent(words)
