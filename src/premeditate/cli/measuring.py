"""A judge as it is measured, in a terminal."""

from __future__ import annotations

import time

from rich.console import Console

from premeditate.cli.board import LINE, duration
from premeditate.cli.progress import Waiting


class Measuring(Waiting):
    """How many pairs are done: on a terminal a line that changes, else one every ten seconds at most."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        super().__init__(console, "loading the judge", quiet=quiet)
        self.done, self.began, self.told = 0, time.monotonic(), time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        text = f"{self.done:,} pairs in {duration(now - self.began)}"
        if self.status:
            self.status.update(f"[dim]{text}[/dim]")
        elif not self.quiet and now - self.told >= LINE:
            self.told = now
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
