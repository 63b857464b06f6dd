"""Asks a reward about pairs of edits, and reports how often it prefers what people (or the exact checker) prefer."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from premeditate.attribute import load_attribute
from premeditate.benchmarks.reward_models.calibration import Reliability, reliability
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
from premeditate.datasets.preferences import SWAPPED, BadPair, Pair, PairsError, Preference, read
from premeditate.rewards.base import Reward, Sample, Verifier
from premeditate.rewards.panel import Entry, Panel
from premeditate.trace import Checklist, Task, Verdict

if TYPE_CHECKING:
    from rich.console import RenderableType

PAIRS = {"micro": "premeditate.microworld.pairs:micro_pairs"}
"""Pairs that are made: "module:function", called with (n, seed)."""


def load_pairs(
    data: str, n: int | None, seed: int = 0, *, root: Path | None = None, format: str | None = None
) -> Iterator[Pair | BadPair]:
    """At most `n` pairs of `data`: a name in `PAIRS`, "module:function", or a file (`premeditate.datasets.preferences`,
    where `seed` decides which pairs are turned round). Raises `PairsError`."""
    where = PAIRS.get(data, data)
    module, colon, _ = where.partition(":")
    if colon and not Path(data).exists() and module.replace(".", "").replace("_", "").isalnum():
        try:
            make = load_attribute(where)
        except (ImportError, AttributeError) as error:
            raise PairsError(f"the pairs {data} cannot be loaded ({error})", "check module:function") from error
        return iter(make(1000 if n is None else n, seed))
    return islice(read(Path(data), root=root, format=format, mix=seed), n)


@dataclass(frozen=True)
class Row:
    """One pair and what was said. `scores` [R][2]: of the first and second edit in each repeat, None where there is
    none; in every other repeat the second was shown first."""

    id: str
    kind: str
    dimension: str
    group: str
    preference: Preference
    scores: tuple[tuple[float | None, float | None], ...]
    statuses: tuple[tuple[str, str], ...]

    @property
    def means(self) -> tuple[float | None, float | None]:
        """Of the repeats that have a score."""
        one, other = ([s[k] for s in self.scores] for k in (0, 1))
        return _mean(one), _mean(other)

    @property
    def difference(self) -> float | None:
        first, second = self.means
        return None if first is None or second is None else first - second


@dataclass(frozen=True)
class Report:
    """What a judge said about pairs. `bad`: rows of the data that were no pairs. `answers`: what it said about single
    questions, and the exact checker's answers to the same, where there are any."""

    settings: dict[str, Any]
    rows: tuple[Row, ...]
    bad: tuple[BadPair, ...]
    answers: tuple[tuple[Verdict, Verdict], ...]
    seconds: float

    def accuracy(self, ties: Any = "wrong", rows: Iterable[Row] | None = None, repeat: int | None = None) -> Accuracy:
        """Over all repeats' mean scores, or those of one `repeat`."""
        chosen = list(self.rows if rows is None else rows)
        pairs = [row.means if repeat is None else row.scores[repeat] for row in chosen]
        return accuracy([label(*pair) for pair in pairs], [row.preference for row in chosen], ties)

    def by(self, column: str) -> dict[str, Accuracy]:
        """Per value of a column (kind, dimension), ties wrong."""
        values = sorted({getattr(row, column) for row in self.rows} - {""})
        return {v: self.accuracy("wrong", [r for r in self.rows if getattr(r, column) == v]) for v in values}

    @property
    def calibrated(self) -> tuple[Accuracy, tuple[float, float]]:
        return calibrated([row.difference for row in self.rows], [row.preference for row in self.rows])

    @property
    def spread(self) -> Spread | None:
        """Over the repeats; None for one."""
        if not self.rows or len(self.rows[0].scores) < 2:
            return None
        return spread(list(zip(*([s[k] for s in row.scores] for row in self.rows for k in (0, 1)), strict=True)))

    @property
    def orders(self) -> Orders | None:
        """The first repeat and the second, which shows every pair the other way round."""
        if not self.rows or len(self.rows[0].scores) < 2:
            return None
        forward = [label(*row.scores[0]) for row in self.rows]
        backward = [None if (said := label(*row.scores[1])) is None else SWAPPED[said] for row in self.rows]
        return both_orders(forward, backward, [row.preference for row in self.rows])

    @property
    def tasks(self) -> dict[str, Tasks]:
        """EditScore's protocol, where the pairs say their task and dimension."""
        rows = [row for row in self.rows if row.kind and row.dimension]
        said = [label(*row.means) for row in rows]
        return editscore([r.kind for r in rows], [r.dimension for r in rows], said, [r.preference for r in rows])

    @property
    def statuses(self) -> dict[str, int]:
        """Of the edits, in all repeats."""
        return dict(Counter(status for row in self.rows for pair in row.statuses for status in pair))

    @property
    def agreement(self) -> Mapping[str, Agreement]:
        return agreement([a for a, _ in self.answers], [b for _, b in self.answers]) if self.answers else {}

    @property
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
            "problems": [b.problem for b in self.bad[:5]], "statuses": self.statuses,
            "accuracy": {ties: self.accuracy(ties).to_json() for ties in TIES},
            "calibrated_ties": {**crossed.to_json(), "thresholds": list(thresholds)},
            "by_kind": {k: a.to_json() for k, a in self.by("kind").items()},
            "by_dimension": {k: a.to_json() for k, a in self.by("dimension").items()},
            "seconds": self.seconds,
        }  # fmt: skip
        if self.tasks:
            out["editscore"] = {dimension: found.to_json() for dimension, found in self.tasks.items()}
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

    def __rich__(self) -> RenderableType:
        """A table for the terminal."""
        from rich.table import Table

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
        lines = [f"{len(self.rows)} pairs, {len(self.bad)} rows without; {self.seconds:.1f} s; {self.statuses}"]
        if self.spread is not None and self.spread.within is not None and self.orders is not None:
            lines.append(f"over repeats: std {math.sqrt(self.spread.within):.4f}, same answer in both orders "
                         f"{self.orders.consistent}, for what was shown first {self.orders.first_shown}")  # fmt: skip
        for name, part in self.agreement.items():
            lines.append(f"questions, {name}: as the exact checker {part.agree} of {part.agree.n}; yes where no "
                         f"{part.false_yes}; no where yes {part.false_no}")  # fmt: skip
        if self.reliability is not None and self.reliability.ece is not None:
            lines.append(f"probabilities: ECE {self.reliability.ece:.3f}, Brier {self.reliability.brier:.3f}")
        table.caption, table.caption_justify = "\n".join(lines), "left"
        return table


def evaluate(
    reward: Reward, pairs: Iterable[Pair | BadPair], *, score: str | Mapping[str, str] | None = None, repeats: int = 1,
    batch: int = 32, timeout: float = 600.0, checker: Verifier | None = None, data: str = "",
    on_pair: Callable[[int], None] | None = None,
) -> Report:  # fmt: skip
    """Has the edits of all pairs scored, `batch` pairs at a time; an edit that is in several pairs, once.

    `score`: which of the reward's dimensions is compared; a mapping says it for each dimension of the pairs
    ({"consistency": "C"}); None: the mean of all, missing where one is. `repeats`: every edit is scored so often, with
    the pairs turned round in every other one. `timeout`: seconds for a call. `checker`: answers the same questions as
    the judge where that answers any, to be compared with. Raises `ModelError` and ValueError for a dimension that there
    is not and less than one repeat, and what the reward raises against its contract (`RewardError`).
    """
    if repeats < 1 or batch < 1:
        raise ValueError(f"{repeats} repeats in batches of {batch} cannot be; give at least 1 of each")
    for wanted in [score] if isinstance(score, str) else (score or {}).values():
        if wanted not in reward.dimensions:
            raise ValueError(f"the reward has no dimension {wanted!r}; it has {', '.join(reward.dimensions)}")
    asker = _Asker(reward, score, repeats, timeout, checker)
    start = time.perf_counter()
    rows: list[Row] = []
    bad: list[BadPair] = []
    every = iter(pairs)
    with asker.panel:
        while part := list(islice(every, batch)):
            bad += [one for one in part if isinstance(one, BadPair)]
            rows += asker.rows([one for one in part if isinstance(one, Pair)])
            if on_pair is not None:
                on_pair(len(part))
    settings = {"reward": reward.name, "data": data, "score": score or "mean of " + ", ".join(reward.dimensions),
                "repeats": repeats}  # fmt: skip
    return Report(settings, tuple(rows), tuple(bad), tuple(asker.answers), time.perf_counter() - start)


class _Asker:
    def __init__(self, reward: Reward, score: Any, repeats: int, timeout: float, checker: Verifier | None) -> None:
        self.panel = Panel([Entry(reward, timeout=timeout)])
        self.score, self.repeats, self.checker = score, repeats, checker
        self.dimensions = reward.dimensions
        self.groupwise = bool(getattr(reward, "groupwise", False))
        self.known: list[dict[str, Verdict]] = [{} for _ in range(repeats)]
        self.answers: list[tuple[Verdict, Verdict]] = []

    def rows(self, pairs: Sequence[Pair]) -> list[Row]:
        found = [self._said(pairs, repeat) for repeat in range(self.repeats)]
        return [
            Row(p.id, p.kind, p.dimension, p.group, p.preference,
                tuple((self._value(said[i][0], p), self._value(said[i][1], p)) for said in found),
                tuple((said[i][0].status, said[i][1].status) for said in found))
            for i, p in enumerate(pairs)
        ]  # fmt: skip

    def _said(self, pairs: Sequence[Pair], repeat: int) -> list[tuple[Verdict, Verdict]]:
        """The verdicts on both edits of each pair. Kept without the answers, by the edits' names."""
        known = self.known[repeat]
        wanted: dict[str, Sample] = {}
        for pair in pairs:
            shown = list(zip(self._names(pair), (pair.first, pair.second), strict=True))
            for name, edit in shown[::-1] if repeat % 2 else shown:
                if name not in known and name not in wanted:
                    task = Task(id=pair.group or pair.id, images=(), instruction=pair.instruction, meta=pair.meta)
                    wanted[name] = Sample(task, pair.source, edit, group=pair.id)
        verdicts = [row[0] for row in self.panel.score(list(wanted.values())).verdicts]
        if repeat == 0:
            self._compare(list(wanted.values()), verdicts)
        for name, verdict in zip(wanted, verdicts, strict=True):
            known[name] = verdict.model_copy(update={"answers": ()})
        return [(known[one], known[other]) for one, other in map(self._names, pairs)]

    def _names(self, pair: Pair) -> tuple[str, str]:
        """Of an edit that is judged beside another one, the scores hold for that pair only."""
        if self.groupwise or not all(pair.names):
            return f"{pair.id}\0first", f"{pair.id}\0second"
        return pair.names

    def _compare(self, samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> None:
        """The checker's answers to the questions that the judge answered."""
        import asyncio

        asked = [(s, v) for s, v in zip(samples, verdicts, strict=True) if v.answers]
        if self.checker is None or not asked:
            return
        again = [
            # Without the task's own truth: the checker is to answer the judge's questions, not the right ones.
            Sample(s.task.model_copy(update={"meta": {}}), s.source, s.edit, _checklist(v))
            for s, v in asked
        ]
        for (_, verdict), truth in zip(asked, asyncio.run(_verify(self.checker, again)), strict=True):
            if len(truth.answers) == len(verdict.answers):
                self.answers.append((verdict, truth))

    def _value(self, verdict: Verdict, pair: Pair) -> float | None:
        wanted = self.score.get(pair.dimension) if isinstance(self.score, Mapping) else self.score
        if wanted is not None:
            return verdict.scores.get(wanted)
        if any(dimension not in verdict.scores for dimension in self.dimensions):
            return None
        return sum(verdict.scores[d] for d in self.dimensions) / len(self.dimensions)


def _checklist(verdict: Verdict) -> Checklist:
    return Checklist(items=tuple(answer.item for answer in verdict.answers))


async def _verify(checker: Verifier, samples: Sequence[Sample]) -> Sequence[Verdict]:
    return await checker.verify(samples)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
