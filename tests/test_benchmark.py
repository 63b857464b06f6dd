"""The micro-world benchmark: its success is the exact checker's, its rates carry intervals."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from micro_fakes import Oracle, RuleEditor
from premeditate.benchmarks import microworld
from premeditate.editors.base import EditRequest, EditResult
from premeditate.microworld.tasks import sample_tasks
from premeditate.stats import Rate, wilson


def bench(n: int = 80, seed: int = 2, split: Any = "test", editor: Any = None, oracle: dict[str, Any] | None = None,
          **options: Any) -> microworld.Report:  # fmt: skip
    reasoner = Oracle(sample_tasks(n, seed, split), **(oracle or {}))
    return microworld.run(n, split, seed=seed, editor=editor or RuleEditor(), reasoner=reasoner, **options)


def test_perfect_parts_score_one_hundred() -> None:
    report = bench(strategy="plan")
    data = report.to_json()
    assert data["success"]["k"] == data["n"] == data["scored"] == 80 and data["success"]["low"] > 0.95
    assert (
        data["verified"]["value"] == 1 and data["wrongly_verified"]["value"] == data["wrongly_unverified"]["value"] == 0
    )
    assert all(rate["value"] == 1 for rate in data["by_dimension"].values()) and len(data["by_kind"]) == 6
    assert sum(rate["n"] for rate in data["by_kind"].values()) == 80
    assert data["edits_per_task"] == 1 and data["calls_per_task"]["plan"] == 1 and data["calls_per_task"]["answer"] > 2
    assert data["settings"]["seed"] == 2 and data["settings"]["split"] == "test"
    assert data["seconds_per_task"] == pytest.approx(data["seconds"] / 80)


def test_success_does_not_ask_what_the_loop_believed() -> None:
    """A verifier that says yes to everything verifies everything; success stays what it is."""
    honest = bench(editor=RuleEditor(slip=0.5), strategy="plan")
    gullible = bench(editor=RuleEditor(slip=0.5), oracle={"yes_man": 1.0}, strategy="plan")
    assert honest.rate() == gullible.rate() and 0.3 < (honest.rate().value or 0) < 0.8
    assert honest.wrongly_verified.k == honest.wrongly_unverified.k == 0
    assert gullible.wrongly_verified == Rate(80 - gullible.rate().k, 80)
    stubborn = bench(oracle={"nonsense": ["answer"]}, strategy="plan")
    assert stubborn.rate().k == 80 and stubborn.wrongly_unverified == Rate(80, 80)
    assert stubborn.to_json()["verdicts"] == {"unparsable": 80}


def test_the_splits_out_of_domain_are_reported_apart() -> None:
    report = bench(split="ood", strategy="plan")
    assert {name: rate.n for name, rate in report.by("split").items()} == {"ood-combo": 40, "ood-family": 40}
    assert report.rate().n == 80


def test_the_same_seed_is_the_same_report() -> None:
    def rows(seed: int) -> list[tuple[str, bool | None]]:
        return [(r.id, r.success) for r in bench(40, seed, editor=RuleEditor(slip=0.5), strategy="reflect").rows]

    assert rows(1) == rows(1) != rows(2)


def test_looking_again_pays_and_costs() -> None:
    plan = bench(editor=RuleEditor(slip=0.5), strategy="plan")
    think = bench(editor=RuleEditor(slip=0.5), strategy="think-while-edit", chains=2)
    assert (think.rate().interval or (0, 0))[0] > (plan.rate().interval or (1, 1))[1]
    assert think.calls_per_task["edit"] > plan.calls_per_task["edit"] == 1
    data = think.to_json()
    assert data["any_round_exact"]["k"] == data["success"]["k"] > data["first_edit_exact"]["k"]


def test_what_could_not_be_edited_is_not_a_failure_but_missing() -> None:
    class Half(RuleEditor):
        async def edit(self, requests: Sequence[EditRequest]) -> list[EditResult]:
            return [EditResult(None, error="out of memory") if "red" in r.prompt else d
                    for r, d in zip(requests, await super().edit(requests), strict=True)]  # fmt: skip

    report = bench(editor=Half(), strategy="plan")
    data = report.to_json()
    assert 0 < data["scored"] < data["n"] == 80 and data["success"]["value"] == 1.0
    assert sum(data["errors"].values()) == 80 - data["scored"] and "out of memory" in next(iter(data["errors"]))
    assert f"{80 - data['scored']} of 80 tasks without an image" in show(report)


def test_a_picture_that_is_no_scene_is_a_failure() -> None:
    class Blank(RuleEditor):
        def _one(self, request: EditRequest) -> Any:
            return Image.new("RGB", (64, 64), "black")

    data = bench(20, editor=Blank(), strategy="direct", verifier="exact").to_json()
    assert data["success"] == Rate(0, 20).to_json() and data["by_dimension"]["quality"]["k"] == 0
    assert data["verdicts"] == {"unavailable": 20}


def show(report: microworld.Report) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(report)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_and_the_json() -> None:
    report = bench(split="ood", editor=RuleEditor(slip=0.3))
    text = show(report)
    for word in ("ood-combo", "think-while-edit", "quality", "temporal", "edits", "%"):
        assert word in text
    data = json.loads(json.dumps(report.to_json(rows=True)))
    assert len(data["rows"]) == 80 and {"id", "success", "verified", "trace"} <= set(data["rows"][0])
    assert "rows" not in report.to_json()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        bench(0)
    with pytest.raises(ValueError, match="no strategy"):
        bench(2, strategy="hope")


def test_wilson_against_known_values() -> None:
    """Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for k, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(k, n) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))
    assert wilson(5, 5)[1] == 1.0
    for k, n in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="no interval"):
            wilson(k, n)


def test_a_rate_of_nothing_is_not_zero() -> None:
    nothing = Rate(0, 0)
    assert nothing.value is None and nothing.interval is None and str(nothing) == "-"
    assert nothing.to_json() == {"k": 0, "n": 0, "value": None, "low": None, "high": None}
    with pytest.raises(ValueError, match="not a rate"):
        Rate(3, 2)
    assert str(Rate(1, 2)).startswith("50.0 % [") and not math.isnan(Rate(1, 2).value or math.nan)
