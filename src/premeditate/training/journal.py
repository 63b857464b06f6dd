"""The record of a run: what it was told, its figures, and pictures of what it makes.

OUT/recipe.yaml               the whole recipe, defaults included
OUT/log.jsonl                 one JSON object a line: {"kind": "step" | "eval" | "notice", "step": 20, "at": seconds
                              since 1970, ...}, then the figures by name; null for one that is not finite
OUT/grids/step-000020.png     source | edit | verdict of some held-out tasks
OUT/curve.png                 the held-out rewards
OUT/lock                      held by the one process that writes
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from premeditate.config import dump_config
from premeditate.eventlog import Writer
from premeditate.files import write_atomic
from premeditate.training.recipe import Recorded
from premeditate.training.trackers import Tracker, open_tracker

if TYPE_CHECKING:
    from premeditate.rewards.base import Sample

LOG, RECIPE, GRIDS, CURVE = "log.jsonl", "recipe.yaml", "grids", "curve.png"
OnFigures = Callable[[str, int, Mapping[str, float]], None]
_BOUNDS = ("/low", "/high", "/n")


class Journal:
    """`step`: the step that the run goes on from; later rows, of a run that was cut off, are dropped. 0: a new run.

    `say`: gets notices. `on_figures`: gets (kind, step, figures) as they come, the console's progress. Raises
    `StoreError` if another process writes the run in `out`, `WriteError`, and `PremeditateError` for a tracker of
    recipe.logging.to that is missing or does not start.
    """

    def __init__(
        self,
        out: Path,
        recipe: Recorded,
        *,
        step: int = 0,
        say: Callable[[str], None] | None = None,
        on_figures: OnFigures | None = None,
    ) -> None:
        self.out, self.recipe, self.step = out, recipe, step
        self._say, self._on_figures = say, on_figures
        self._writer: Writer | None = Writer.of(out / LOG, sync=False)
        self._drop_after(step)
        write_atomic(out / RECIPE, dump_config(recipe).encode())
        self._trackers: dict[str, Tracker] = {}
        for name in recipe.logging.to:
            self._trackers[name] = open_tracker(name, out, recipe, step)

    def _drop_after(self, step: int) -> None:
        """Cuts the log off before the first row after `step`: the steps since the checkpoint are done again."""
        path, kept = self.out / LOG, 0
        with open(path, "rb") as file:
            for line in file:
                if step == 0 or _parsed(line).get("step", 0) > step:
                    break
                kept += len(line)
        os.truncate(path, kept)

    def write(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        """Adds a row. Figures that are not finite become null here and are left out elsewhere: they are missing."""
        self._append(kind, step, {name: _number(value) for name, value in figures.items()})
        finite = {name: float(value) for name, value in figures.items() if math.isfinite(value)}
        plain = {name: value for name, value in finite.items() if not _is_bound(name, finite)}
        tagged = {name if "/" in name else f"train/{name}": value for name, value in plain.items()}
        self._tell("figures", lambda tracker: tracker.log(step, tagged))
        if self._on_figures is not None:
            self._on_figures(kind, step, finite)

    def notice(self, line: str) -> None:
        """Something that the user should know, in the log and on the console."""
        self._append("notice", self.step, {"text": line})
        if self._say is not None:
            self._say(line)

    def grid(self, step: int, shown: Sequence[tuple[int, Sample, Mapping[str, float]]]) -> Path | None:
        """A picture of (task's number, its edit, scores by name; NaN: missing). None where there is nothing to show. A
        picture that cannot be made is a notice."""
        if not shown:
            return None
        from premeditate import images
        from premeditate.training.grid import Edit, Row, draw

        path = self.out / GRIDS / f"step-{step:06d}.png"
        try:
            rows = [Row(s.source, s.task.instruction, (Edit(s.edit, scores),)) for _, s, scores in shown]
            picture = draw(rows)
            write_atomic(path, images.encode(picture), sync=False)
        except Exception as error:
            self.notice(f"no grid was made at step {step}: {error}")
            return None
        self._tell("pictures", lambda tracker: tracker.picture(step, "eval/edits", picture))
        return path

    def curve(self) -> Path | None:
        """Draws the held-out rewards so far. None where there are none, or matplotlib is not installed."""
        from premeditate.training.curves import NothingToDraw, draw

        try:
            return draw({self.recipe.name or self.out.name: [self.rows()]}, self.out / CURVE)
        except NothingToDraw:
            return None
        except Exception as error:
            self.notice(f"no curve was drawn: {error}")
            return None

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far, those of earlier parts of a resumed run included."""
        return read(self.out)

    def close(self) -> None:
        """Ends the trackers and lets go of the folder."""
        self._tell("end", lambda tracker: tracker.close())
        self._trackers.clear()
        self._writer = None

    def _append(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        assert self._writer is not None, "the journal is closed"
        assert not values.keys() & {"kind", "step", "at"}
        self.step = step
        row = {"kind": kind, "step": step, "at": round(time.time(), 3), **values}
        self._writer.write(json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n")

    def _tell(self, what: str, call: Callable[[Tracker], None]) -> None:
        """What a tracker cannot take, the run does without: it is not worth a run."""
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:
                del self._trackers[name]
                why = " ".join(str(error).split())[:200] or type(error).__name__
                self.notice(f"{name} failed ({what}: {why}) and gets nothing more; log.jsonl goes on")


def read(out: Path) -> list[dict[str, Any]]:
    """The rows of the run in `out`, oldest first; [] where there is none. A line that was cut off is left out."""
    try:
        lines = (out / LOG).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [row for row in map(_parsed, lines) if row]


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _number(value: float) -> float | int | None:
    number = value if isinstance(value, int) and not isinstance(value, bool) else float(value)
    return number if math.isfinite(number) else None


def _is_bound(name: str, figures: Mapping[str, float]) -> bool:
    """Whether it belongs to another figure: its interval or its count."""
    base, slash, last = name.rpartition("/")
    return slash + last in _BOUNDS and base in figures
