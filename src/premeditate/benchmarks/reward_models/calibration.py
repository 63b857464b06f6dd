"""Whether a judge's probabilities are right: of the answers given with 70 %, 70 % should be yes.

ECE = sum_b n_b / n |share of yes in b - mean probability in b|        (Naeini et al., AAAI 2015)
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from premeditate.errors import PremeditateError
from premeditate.files import write_atomic
from premeditate.stats import Rate


class NoDiagram(PremeditateError):
    """matplotlib is not installed, or there is nothing to draw."""


@dataclass(frozen=True)
class Bin:
    """The answers whose probability is in [low, high); the last bin holds 1 too. `probability`: their mean."""

    low: float
    high: float
    probability: float
    yes: Rate


@dataclass(frozen=True)
class Reliability:
    """`bins`: those with answers. `missing`: answers without a probability or a truth, which are left out. `brier`: the
    mean squared difference of probability and truth. `ece` and `brier` are None without answers."""

    bins: tuple[Bin, ...]
    n: int
    missing: int
    brier: float | None

    @property
    def ece(self) -> float | None:
        if not self.n:
            return None
        return sum(abs(b.yes.k - b.yes.n * b.probability) for b in self.bins) / self.n

    @property
    def coverage(self) -> Rate:
        return Rate(self.n, self.n + self.missing)

    def to_json(self) -> dict[str, Any]:
        bins = [{"low": b.low, "high": b.high, "probability": b.probability, "yes": b.yes.to_json()} for b in self.bins]
        return {"n": self.n, "missing": self.missing, "ece": self.ece, "brier": self.brier, "bins": bins}


def reliability(
    probabilities: Sequence[float | None], truth: Sequence[bool | None], bins: int = 10,
    by: Literal["width", "count"] = "width",
) -> Reliability:  # fmt: skip
    """`probabilities` in [0, 1] that the answer is yes, and whether it is. `by`: bins of equal width, or with equally
    many answers (equal probabilities are never parted, so that there may be fewer). Raises ValueError for probabilities
    outside of [0, 1] and less than one bin."""
    if bins < 1:
        raise ValueError(f"{bins} bins cannot be; give at least 1")
    known = sorted(
        (float(p), bool(t)) for p, t in zip(probabilities, truth, strict=True)
        if p is not None and t is not None and not math.isnan(p)
    )  # fmt: skip
    if known and (known[0][0] < 0 or known[-1][0] > 1):
        raise ValueError(f"probabilities are from {known[0][0]:g} to {known[-1][0]:g}; give them in [0, 1]")
    edges = _edges([p for p, _ in known], bins, by)
    found = []
    for k, (low, high) in enumerate(pairwise(edges), 2):
        part = [(p, t) for p, t in known if low <= p and (p < high or k == len(edges))]
        if part:
            found.append(Bin(low, high, sum(p for p, _ in part) / len(part), Rate.of(t for _, t in part)))
    brier = sum((p - t) ** 2 for p, t in known) / len(known) if known else None
    return Reliability(tuple(found), len(known), len(probabilities) - len(known), brier)


def _edges(ordered: list[float], bins: int, by: str) -> list[float]:
    if by == "width" or not ordered:
        return [k / bins for k in range(bins + 1)]
    inner = {ordered[k * len(ordered) // bins] for k in range(1, bins)} - {0.0, ordered[0]}
    return [0.0, *sorted(inner), 1.0]


def draw(found: Reliability, path: Path, *, title: str = "") -> Path:
    """The reliability diagram as a PNG at `path`: each bin's share of yes with its 95 % interval, over its mean
    probability, and how many answers it holds. Raises `NoDiagram`."""
    try:
        import matplotlib
    except ImportError:
        raise NoDiagram(
            "diagrams are drawn with matplotlib, which is not installed", "pip install matplotlib"
        ) from None
    if not found.bins:
        raise NoDiagram("no answer has both a probability and a truth", "ask a judge that gives probabilities")
    # Not pyplot: that would choose a display for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x = [b.probability for b in found.bins]
    y = [b.yes.k / b.yes.n for b in found.bins]
    bounds = [b.yes.interval or (v, v) for b, v in zip(found.bins, y, strict=True)]
    errors = [[v - low for v, (low, _) in zip(y, bounds, strict=True)],
              [high - v for v, (_, high) in zip(y, bounds, strict=True)]]  # fmt: skip
    buffer = io.BytesIO()
    with matplotlib.rc_context({"font.size": 11}):
        canvas = FigureCanvasAgg(Figure(figsize=(5.2, 5.6), dpi=140, facecolor="white"))
        upper, lower = canvas.figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--", label="calibrated")
        upper.errorbar(x, y, yerr=errors, color="C0", marker="o", markersize=4, linewidth=1.5, capsize=2,
                       label=f"ECE {found.ece:.3f}, n = {found.n}")  # fmt: skip
        upper.set(ylabel="share of yes", xlim=(0, 1), ylim=(-0.02, 1.02), title=title)
        upper.legend(frameon=False, loc="upper left")
        lower.bar([b.low for b in found.bins], [b.yes.n for b in found.bins], align="edge", color="0.8",
                  width=[b.high - b.low for b in found.bins], edgecolor="white")  # fmt: skip
        lower.set(xlabel="probability of yes", ylabel="answers")
        for axes in (upper, lower):
            axes.spines[["top", "right"]].set_visible(False)
        canvas.figure.savefig(buffer, format="png", bbox_inches="tight")
    return write_atomic(path, buffer.getvalue(), sync=False)
