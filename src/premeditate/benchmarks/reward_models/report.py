"""What a judge said about pairs of edits, and every figure that follows from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from premeditate.benchmarks.reward_models.calibration import Reliability, reliability
from premeditate.benchmarks.reward_models.groups import Counts, genai_counts, tiger_counts
from premeditate.benchmarks.reward_models.pairwise import (
    TIES,
    Accuracy,
    Orders,
    accuracy,
    both_orders,
    calibrated,
    label,
)
from premeditate.benchmarks.reward_models.protocols import Tasks, editscore
from premeditate.benchmarks.reward_models.repeats import Agreement, Spread, agreement, spread
from premeditate.benchmarks.reward_models.row import Row
from premeditate.datasets.preferences import SWAPPED, BadPair
from premeditate.errors import printable
from premeditate.stats import Rate, in_percent
from premeditate.trace import Verdict

if TYPE_CHECKING:
    from rich.console import RenderableType

REASONS = 5
"""Of the reasons for missing scores, how many are told."""


@dataclass(frozen=True)
class Report:
    """What a judge said about pairs. `bad`: rows of the data that were no pairs. `answers`: what it said about single
    questions, and the exact checker's answers to the same, where there are any. `reasons`: why edits have no score, and
    how many, in all repeats. Figures are worked out once, when they are asked for."""

    settings: dict[str, Any]
    rows: tuple[Row, ...]
    bad: tuple[BadPair, ...]
    answers: tuple[tuple[Verdict, Verdict], ...]
    seconds: float
    reasons: Mapping[str, int] = field(default_factory=dict)

    def accuracy(self, ties: Any = "wrong", rows: Iterable[Row] | None = None, repeat: int | None = None) -> Accuracy:
        """Over all repeats' mean scores, or those of one `repeat`."""
        chosen = list(self.rows if rows is None else rows)
        pairs = [row.means if repeat is None else row.scores[repeat] for row in chosen]
        return accuracy([label(*pair) for pair in pairs], [row.preference for row in chosen], ties)

    def by(self, column: str) -> dict[str, Accuracy]:
        """Per value of a column (kind, dimension), ties wrong."""
        values = sorted({getattr(row, column) for row in self.rows} - {""})
        return {v: self.accuracy("wrong", [r for r in self.rows if getattr(r, column) == v]) for v in values}

    @cached_property
    def calibrated(self) -> tuple[Accuracy, tuple[float, float]]:
        return calibrated([row.difference for row in self.rows], [row.preference for row in self.rows])

    @cached_property
    def spread(self) -> Spread | None:
        """Over the repeats, of every edit once; None for one repeat."""
        if not self.rows or len(self.rows[0].scores) < 2:
            return None
        score = self.settings["score"]
        told = score if isinstance(score, Mapping) else {}
        # An edit whose pairs compare different dimensions has a score for each of these.
        columns = {
            (edit, told.get(row.dimension)): [s[k] for s in row.scores]
            for row in self.rows
            for k, edit in enumerate(row.edits)
        }
        return spread(list(zip(*columns.values(), strict=True)))

    @cached_property
    def orders(self) -> Orders | None:
        """The first repeat and the second, which shows every pair the other way round."""
        if not self.rows or len(self.rows[0].scores) < 2:
            return None
        forward = [label(*row.scores[0]) for row in self.rows]
        backward = [None if (said := label(*row.scores[1])) is None else SWAPPED[said] for row in self.rows]
        return both_orders(forward, backward, [row.preference for row in self.rows])

    @cached_property
    def tasks(self) -> dict[str, Tasks]:
        """EditScore's protocol, where the pairs say their task and dimension."""
        rows = [row for row in self.rows if row.kind and row.dimension]
        said = [label(*row.means) for row in rows]
        return editscore([r.kind for r in rows], [r.dimension for r in rows], said, [r.preference for r in rows])

    @cached_property
    def tiger(self) -> dict[str, Counts]:
        """TIGER-Lab's protocol ("strict", "calibrated"), where the pairs are of groups; {} else."""
        return tiger_counts(self.rows, self.bad)

    @cached_property
    def genai(self) -> dict[str, Counts]:
        """GenAI-Bench's ("strict", "calibrated"), where people told good ties from bad ones; {} else."""
        return genai_counts(self.rows, self.bad)

    @cached_property
    def statuses(self) -> dict[str, int]:
        """Of the edits, each once, in all repeats."""
        edits = {edit: [s[k] for s in row.statuses] for row in self.rows for k, edit in enumerate(row.edits)}
        return dict(Counter(status for statuses in edits.values() for status in statuses))

    @cached_property
    def agreement(self) -> Mapping[str, Agreement]:
        return agreement([a for a, _ in self.answers], [b for _, b in self.answers]) if self.answers else {}

    @cached_property
    def reliability(self) -> Reliability | None:
        """Of the probabilities of yes, against the exact checker; None without questions."""
        pairs = [(a, b) for one, two in self.answers for a, b in zip(one.answers, two.answers, strict=True)]
        if not pairs:
            return None
        known = [a.p_yes if a.status == "scored" else None for a, _ in pairs]
        return reliability(known, [b.yes if b.status == "scored" else None for _, b in pairs])

    def to_json(self, *, rows: bool = False) -> dict[str, Any]:
        """Plain JSON values; `rows` adds every pair."""
        crossed, thresholds = self.calibrated
        out: dict[str, Any] = {
            "benchmark": "reward-models", "settings": self.settings, "pairs": len(self.rows), "bad": len(self.bad),
            "problems": [b.problem for b in self.bad[:5]], "statuses": self.statuses, "reasons": self._reasons(),
            "accuracy": {ties: self.accuracy(ties).to_json() for ties in TIES},
            "calibrated_ties": {**crossed.to_json(), "thresholds": list(thresholds)},
            "by_kind": {k: a.to_json() for k, a in self.by("kind").items()},
            "by_dimension": {k: a.to_json() for k, a in self.by("dimension").items()},
            "seconds": self.seconds,
        }  # fmt: skip
        if self.tasks:
            out["editscore"] = {dimension: found.to_json() for dimension, found in self.tasks.items()}
        for protocol in ("tiger", "genai"):
            if found := getattr(self, protocol):
                out[protocol] = {how: counts.to_json() for how, counts in found.items()}
        if self.spread is not None and self.orders is not None:
            count = len(self.rows[0].scores)
            out["repeats"] = {"single": [self.accuracy("wrong", repeat=r).to_json() for r in range(count)],
                              "spread": self.spread.to_json(), "orders": self.orders.to_json()}  # fmt: skip
        if self.reliability is not None:
            out["questions"] = {"agreement": {k: a.to_json() for k, a in self.agreement.items()},
                                "reliability": self.reliability.to_json()}  # fmt: skip
        if rows:
            out["rows"] = [{**row.__dict__, "scores": [list(s) for s in row.scores]} for row in self.rows]
        return out

    def _reasons(self) -> dict[str, int]:
        """The commonest ones."""
        return dict(Counter(self.reasons).most_common(REASONS))

    def __rich__(self) -> RenderableType:
        """A table for the terminal."""
        from rich.table import Table
        from rich.text import Text

        s = self.settings
        table = Table("", "pairs", "accuracy, 95 % interval", "coverage", "judge ties", title_justify="left",
                      title=f"{s['reward']} on {s['data']}: {s['score']}, {s['repeats']} repeat(s)")  # fmt: skip
        named = [(f"ties {ties}", self.accuracy(ties)) for ties in TIES]
        named.append(("ties label, threshold calibrated", self.calibrated[0]))
        groups = [named, list(self.by("kind").items()), list(self.by("dimension").items())]
        for rows in groups:
            for index, (name, found) in enumerate(rows):
                table.add_row(name, str(found.n), str(found), _percent(found.coverage.value),
                              _percent(found.tie_rate.value), end_section=index == len(rows) - 1)  # fmt: skip
        for cells in self._protocols():
            table.add_row(*cells)
        table.caption, table.caption_justify = Text("\n".join(self._lines())), "left"
        return table

    def _protocols(self) -> Iterator[tuple[str, str, str, str, str]]:
        """The published benchmarks' own counts, as rows of the table."""
        for dimension, found in self.tasks.items():
            yield (f"EditScore's {dimension}, mean of {len(found.tasks)} tasks", str(found.pairs.n),
                   in_percent(found.mean, found.interval), _percent(found.pairs.coverage.value),
                   _percent(found.pairs.tie_rate.value))  # fmt: skip
        for how, counts in self.tiger.items():
            lost = counts.answered
            for size, rate in counts.all.by_size.items():
                covered = Rate(lost.by_size[size].n, rate.n)
                if how == "strict" or size == 2:
                    yield f"TIGER-Lab's groups, K={size}, {how}", str(rate.n), str(rate), _percent(covered.value), ""
            every, covered = counts.all.overall, Rate(lost.overall.n, counts.all.overall.n)
            yield f"TIGER-Lab's groups, overall, {how}", str(every.n), str(every), _percent(covered.value), ""
        for how, counts in self.genai.items():
            found = counts.all
            yield (f"GenAI-Bench's four labels, {how}", str(found.n), str(found), _percent(found.coverage.value),
                   _percent(found.tie_rate.value))  # fmt: skip

    def _lines(self) -> list[str]:
        """What is said beneath the table."""
        lines = [f"{len(self.rows)} pairs, {len(self.bad)} rows without; {self.seconds:.1f} s; {self.statuses}"]
        lines += [f"without a score, {n}: {printable(reason)}" for reason, n in list(self._reasons().items())[:1]]
        if self.spread is not None and self.spread.within is not None and self.orders is not None:
            lines.append(f"over repeats: std {math.sqrt(self.spread.within):.4f}, same answer in both orders "
                         f"{self.orders.consistent}, for what was shown first {self.orders.first_shown}")  # fmt: skip
            if not self.settings["reseeded"]:
                lines.append("the judge was asked the same each time: noise that its own seeds fix does not show")
        for name, part in self.agreement.items():
            lines.append(f"questions, {name}: as the exact checker {part.agree} of {part.agree.n}; yes where no "
                         f"{part.false_yes}; no where yes {part.false_no}")  # fmt: skip
        if self.reliability is not None and self.reliability.ece is not None:
            lines.append(f"probabilities: ECE {self.reliability.ece:.3f}, Brier {self.reliability.brier:.3f}")
        return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
