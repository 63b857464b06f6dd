"""The micro-world benchmark: how often the chosen image is exactly right, whatever the loop believed.

Success is the exact checker's: every cell of the target scene, sharply drawn. Beside it stand how often the loop's
`verified` was wrong in either direction, and what the edits cost. Test scenes are never trained on; `ood` adds
held-out families of instructions (*ood-family*) and held-out pairs of colour and shape (*ood-combo*), reported apart.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Unpack, get_args

from premeditate.api import load_parts
from premeditate.engine.memory import MemoryStore, Store
from premeditate.engine.runner import Engine, Limits
from premeditate.engine.strategies import Options, make_settings
from premeditate.engine.walk import OnEvent
from premeditate.microworld.checker import NotAScene, answer, decode, is_exact
from premeditate.microworld.render import render
from premeditate.microworld.tasks import MicroTask, Split, sample_tasks
from premeditate.stats import Rate
from premeditate.store import versions
from premeditate.trace import Dimension, ImageRef, Task, Trace

if TYPE_CHECKING:
    from rich.console import RenderableType

    from premeditate.editors.base import Editor
    from premeditate.reasoners.base import Reasoner
    from premeditate.rewards.base import Verifier

DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)


@dataclass(frozen=True)
class Row:
    """One task's outcome. `success` and `dimensions` are None / empty where no image was made (see `error`)."""

    id: str
    trace: str
    kind: str
    family: str
    split: str
    success: bool | None
    dimensions: dict[str, bool]
    verified: bool
    judged: str
    any_exact: bool
    first_exact: bool
    rounds: int
    calls: dict[str, int]
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Report:
    """What a run of the benchmark found. `settings` reproduce it."""

    settings: dict[str, Any]
    rows: tuple[Row, ...]
    seconds: float

    @property
    def scored(self) -> list[Row]:
        return [row for row in self.rows if row.success is not None]

    def rate(self, rows: Iterable[Row] | None = None) -> Rate:
        """Success among the rows that have an image."""
        every = self.scored if rows is None else rows
        return Rate.of(row.success for row in every if row.success is not None)

    def by(self, column: str) -> dict[str, Rate]:
        """Success per value of a column: kind, family or split."""
        values = sorted({getattr(row, column) for row in self.scored})
        return {value: self.rate(row for row in self.scored if getattr(row, column) == value) for value in values}

    @property
    def dimensions(self) -> dict[str, Rate]:
        """Share of tasks whose items of a dimension are all fulfilled."""
        return {d: Rate.of(row.dimensions[d] for row in self.scored if d in row.dimensions) for d in DIMENSIONS}

    @property
    def wrongly_verified(self) -> Rate:
        """Of the verified answers, those that are not exactly right."""
        return Rate.of(row.success is not True for row in self.scored if row.verified)

    @property
    def wrongly_unverified(self) -> Rate:
        """Of the exactly right answers, those that the loop did not verify."""
        return Rate.of(not row.verified for row in self.scored if row.success)

    @property
    def calls_per_task(self) -> dict[str, float]:
        total: Counter[str] = Counter()
        for row in self.rows:
            total.update(row.calls)
        return {name: total[name] / max(1, len(self.rows)) for name in sorted(total)}

    def to_json(self, *, rows: bool = False) -> dict[str, Any]:
        """Plain JSON values; `rows` adds every task (for paired comparisons of two runs)."""
        calls = self.calls_per_task
        out: dict[str, Any] = {
            "benchmark": "microworld",
            "settings": self.settings,
            "n": len(self.rows),
            "scored": len(self.scored),
            "errors": dict(Counter(row.error for row in self.rows if row.error).most_common(5)),
            "success": self.rate().to_json(),
            "by_kind": {k: r.to_json() for k, r in self.by("kind").items()},
            "by_split": {k: r.to_json() for k, r in self.by("split").items()},
            "by_family": {k: r.to_json() for k, r in self.by("family").items()},
            "by_dimension": {k: r.to_json() for k, r in self.dimensions.items()},
            "verified": Rate.of(row.verified for row in self.scored).to_json(),
            "wrongly_verified": self.wrongly_verified.to_json(),
            "wrongly_unverified": self.wrongly_unverified.to_json(),
            "verdicts": dict(Counter(row.judged for row in self.scored)),
            "first_edit_exact": Rate.of(row.first_exact for row in self.scored).to_json(),
            "any_round_exact": Rate.of(row.any_exact for row in self.scored).to_json(),
            "rounds_per_task": sum(row.rounds for row in self.rows) / max(1, len(self.rows)),
            "edits_per_task": calls.get("edit", 0.0),
            "reasoner_calls_per_task": sum(v for k, v in calls.items() if k not in ("edit", "tokens")),
            "calls_per_task": calls,
            "seconds": self.seconds,
            "seconds_per_task": self.seconds / max(1, len(self.rows)),
        }
        if rows:
            out["rows"] = [asdict(row) for row in self.rows]
        return out

    def __rich__(self) -> RenderableType:
        """A table for the terminal."""
        from rich.table import Table

        data, s = self.to_json(), self.settings
        title = f"microworld {s['split']}: {s['strategy']}, {s['chains']} chain(s), verifier {s['verifier']}"
        table = Table("", "n", "success, 95 % interval", title=title, title_justify="left")
        table.add_row("all", str(len(self.scored)), str(self.rate()), style="bold", end_section=True)
        groups = {"kind": self.by("kind"), "split": self.by("split") if len(self.by("split")) > 1 else {}}
        for rates in (*groups.values(), self.dimensions):
            for index, (name, rate) in enumerate(rates.items()):
                table.add_row(name, str(rate.n), str(rate), end_section=index == len(rates) - 1)
        for name, rate in (("first edit exact", Rate.of(r.first_exact for r in self.scored)),
                           ("any round exact", Rate.of(r.any_exact for r in self.scored)),
                           ("verified", Rate.of(r.verified for r in self.scored)),
                           ("  but wrong", self.wrongly_verified),
                           ("right, not verified", self.wrongly_unverified)):  # fmt: skip
            table.add_row(name, str(rate.n), str(rate))
        missing = len(self.rows) - len(self.scored)
        table.caption_justify = "left"
        table.caption = (
            f"{data['edits_per_task']:.2f} edits and {data['reasoner_calls_per_task']:.2f} reasoner calls per task; "
            f"{self.seconds:.1f} s, {data['seconds_per_task']:.3f} s per task"
            + (f"; {missing} of {len(self.rows)} tasks without an image" if missing else "")
        )
        return table


def run(
    n: int = 1000,
    split: Split = "test",
    *,
    editor: str | Editor = "micro",
    reasoner: str | Reasoner = "micro",
    verifier: str | Verifier | None = "reasoner",
    store: Store | None = None,
    limits: Limits | None = None,
    on_event: OnEvent | None = None,
    **options: Unpack[Options],
) -> Report:
    """Runs the benchmark. The same `n`, `seed` and `split` are the same tasks for every strategy and model. `options`:
    fields of `premeditate.engine.strategies.Settings`.

    `seconds` counts the run, not the loading of models. Raises ValueError for settings that do not exist.
    """
    if n < 1:
        raise ValueError(f"n is {n}; give at least 1")
    settings = make_settings(**options)
    seed = settings.seed
    tasks = list(sample_tasks(n, seed, split))
    parts = load_parts(editor, reasoner, verifier)
    kept = MemoryStore() if store is None else store
    rows_of = {task.id: task for task in tasks}
    engine = Engine(*parts, kept, settings, limits=limits, on_event=on_event, versions=versions())
    start = time.perf_counter()
    traces = asyncio.run(engine.run([to_task(task, kept) for task in tasks]))
    seconds = time.perf_counter() - start
    rows = tuple(score(rows_of[trace.task.id], trace, kept) for trace in traces)
    return Report({"n": n, "split": split, **engine.record, "versions": versions()}, rows, seconds)


def to_task(task: MicroTask, store: Store) -> Task:
    """The task with its picture in `store`."""
    return Task(id=task.id, images=(store.put_image(render(task.source)),), instruction=task.instruction,
                meta=task.meta())  # fmt: skip


def score(task: MicroTask, trace: Trace, store: Store) -> Row:
    """The exact checker's word on the chosen image, and on all the others."""
    rounds = [past for chain in trace.chains for past in chain.rounds]
    success, dimensions = (None, {}) if trace.chosen is None else _judge(task, trace.chosen.image, store)
    exact = [_judge(task, past.image, store)[0] for past in rounds]
    verdict = trace.chosen.verdict if trace.chosen else None
    return Row(
        id=task.id, trace=trace.id, kind=task.kind, family=task.family, split=task.split, success=success,
        dimensions=dimensions, verified=trace.verified, judged="none" if verdict is None else verdict.status,
        any_exact=any(exact), first_exact=bool(exact) and exact[0], rounds=len(rounds), calls=trace.calls,
        seconds=trace.seconds, error=trace.error or next((c.error for c in trace.chains if c.error), None),
    )  # fmt: skip


def _judge(task: MicroTask, image: ImageRef, store: Store) -> tuple[bool, dict[str, bool]]:
    try:
        edit = decode(store.get_image(image))
    except NotAScene:
        return False, dict.fromkeys(DIMENSIONS, False)
    found: dict[str, bool] = {}
    for item in task.checklist:
        found[item.dimension] = found.get(item.dimension, True) and answer(item.question, task.source, edit) is True
    return is_exact(task.target, edit), found
