"""Reward curves of runs, as one picture: a thin line per seed, a thick one for their mean, bands for what is known."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from premeditate.errors import PremeditateError
from premeditate.files import write_atomic
from premeditate.stats import student

Rows = Sequence[Mapping[str, Any]]
"""A run's rows, as `premeditate.training.journal.read` gives them."""


class NothingToDraw(PremeditateError):
    """matplotlib is not installed, or there are no held-out figures."""


def draw(runs: Mapping[str, Sequence[Rows]], path: Path, *, figure: str | None = None, title: str = "") -> Path:
    """Draws held-out figures over the steps, for each of `runs` (label -> its seeds' rows), into a PNG at `path`.

    `figure`: its name, "eval/success.success"; None: all of a single run's, the first of several. A run of one seed
    gets the interval over its tasks, one of several the 95 % interval of the seeds' mean (Student's t). Raises
    `NothingToDraw`.
    """
    try:
        import matplotlib
    except ImportError:
        raise NothingToDraw(
            "curves are drawn with matplotlib, which is not installed", "pip install matplotlib"
        ) from None
    # Not pyplot: that would choose a display for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    known = figures(rows for seeds in runs.values() for rows in seeds)
    wanted = known[: len(known) if len(runs) == 1 else 1] if figure is None else [figure]
    lines = {(label, name): [c for rows in seeds if (c := curve(rows, name))]
             for label, seeds in runs.items() for name in wanted}  # fmt: skip
    if not any(lines.values()):
        missing = f"no run has the figure {figure}" if figure else "no run has been evaluated"
        raise NothingToDraw(missing, f"there are {', '.join(known)}" if known else "evaluate it")
    buffer = io.BytesIO()
    with matplotlib.rc_context({"font.size": 11}):
        canvas = FigureCanvasAgg(Figure(figsize=(7.2, 4.4), dpi=140, facecolor="white"))
        single = len(wanted) == 1
        axes = canvas.figure.add_subplot(
            xlabel="step", ylabel=_named(wanted[0]) if single else "held-out tasks", facecolor="white",
            title=title or ("" if single else next(iter(runs))),
        )  # fmt: skip
        for i, ((label, name), seeds) in enumerate(lines.items()):
            if seeds:
                _run(axes, label if single else _named(name), seeds, f"C{i}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(frameon=False, loc="best" if single else "center left", bbox_to_anchor=None if single else (1, 0.5))
        canvas.figure.savefig(buffer, format="png", bbox_inches="tight")
    return write_atomic(path, buffer.getvalue(), sync=False)


def _named(figure: str) -> str:
    """A figure's name for people: "success" for "eval/success.success"."""
    reward, _, dimension = figure.removeprefix("eval/").partition(".")
    return reward if dimension in ("", reward) else f"{reward}: {dimension}"


def _run(axes: Any, label: str, seeds: Sequence[Sequence[tuple[int, float, float, float]]], colour: str) -> None:
    if len(seeds) == 1:
        steps, values, low, high = zip(*seeds[0], strict=True)
        axes.plot(steps, values, color=colour, linewidth=2, marker="o", markersize=3.5, label=label)
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        return
    for seed in seeds:
        axes.plot([p[0] for p in seed], [p[1] for p in seed], color=colour, linewidth=0.8, alpha=0.5)
    steps, values, low, high = zip(*mean(seeds), strict=True)
    axes.plot(steps, values, color=colour, linewidth=2.2, marker="o", markersize=3.5,
              label=f"{label} ({len(seeds)} seeds)")  # fmt: skip
    axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)


def figures(runs: Iterable[Rows]) -> list[str]:
    """The held-out figures that rows hold, in order, without their bounds."""
    names = [k for rows in runs for row in rows if row.get("kind") == "eval" for k in row if k.startswith("eval/")]
    return [k for k in dict.fromkeys(names) if not k.endswith(("/low", "/high", "/n")) and k != "eval/coverage"]


def curve(rows: Rows, figure: str) -> list[tuple[int, float, float, float]]:
    """(step, value, low, high) of each evaluation that has the figure; without an interval, low and high are NaN."""
    found: dict[int, tuple[int, float, float, float]] = {}
    for row in rows:
        if row.get("kind") == "eval" and row.get(figure) is not None:
            low, high = (math.nan if (b := row.get(f"{figure}/{side}")) is None else b for side in ("low", "high"))
            found[row["step"]] = (row["step"], float(row[figure]), float(low), float(high))
    return [found[step] for step in sorted(found)]


def mean(seeds: Sequence[Sequence[tuple[int, float, float, float]]]) -> list[tuple[int, float, float, float]]:
    """The mean over at least 2 seeds at the steps that all of them have, with Student's 95 % interval."""
    at = [{point[0]: point[1] for point in seed} for seed in seeds]
    steps = sorted(set.intersection(*(set(values) for values in at)))
    return [(step, *student([values[step] for values in at])) for step in steps]
