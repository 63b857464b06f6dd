"""The datasheet against brute force over the shards, and the form in which single questions are asked."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from premeditate.datasets import judged
from premeditate.datasets.judged import JudgedEdit
from premeditate.prompts import get
from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.stats import wilson
from premeditate.synthesis.datasheet import markdown
from premeditate.synthesis.forms import Apart, Asked, tempered
from premeditate.synthesis.tally import Agreement
from support.command import premeditate
from support.judging import Fake
from support.rewards import sample
from test_synthesis_runs import SPEC, WORDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("sheet") / "out"
    done = premeditate("data", "rrm", SPEC, "--count", 18, "-o", found, *WORDS)
    assert done.code == 0, done.err
    return found


@pytest.fixture(scope="module")
def edits(folder: Path) -> list[JudgedEdit]:
    return list(judged.read(folder))


@pytest.fixture(scope="module")
def sheet(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "datasheet.json").read_bytes())


def test_gold_is_counted_per_dimension(edits: list[JudgedEdit], sheet: dict[str, Any]) -> None:
    for dimension, rate in sheet["principles"]["met"].items():
        said = [
            g for e in edits for i, g in zip(e.principles, e.gold, strict=True) if dimension in ("all", i.dimension)
        ]
        assert (rate["k"], rate["n"]) == (sum(said), len(said)) and (rate["low"], rate["high"]) == wilson(
            sum(said), len(said)
        )
    assert sheet["principles"]["per_edit"] == {
        str(k): n for k, n in sorted(Counter(len(e.gold) for e in edits).items())
    }
    for name, editor in sheet["editors"].items():
        mine = [e for e in edits if e.editor == name]
        assert editor["kept"] == len(mine) and editor["all_met"]["k"] == sum(all(e.gold) for e in mine)


def test_each_candidate_is_measured_against_gold(edits: list[JudgedEdit], sheet: dict[str, Any]) -> None:
    assert len(sheet["candidates"]) == 4
    for name, found in sheet["candidates"].items():
        for dimension, figures in [(None, found), *found["dimensions"].items()]:
            pairs = np.array([
                (v, g) for e in edits for c in e.candidates if f"{c.judge} @ {c.temperature:g}" == name
                for v, g, i in zip(c.verdicts, e.gold, e.principles, strict=True)
                if dimension in (None, i.dimension)
            ], dtype=bool)  # fmt: skip
            said, true = pairs[:, 0], pairs[:, 1]
            accuracy, chance = (said == true).mean(), said.mean() * true.mean() + (1 - said.mean()) * (1 - true.mean())
            assert math.isclose(figures["accuracy"]["value"], accuracy)
            balanced = (said[true].mean() + (~said[~true]).mean()) / 2
            assert math.isclose(figures["balanced_accuracy"], balanced)
            assert math.isclose(figures["kappa"], (accuracy - chance) / (1 - chance))
        assert found["chosen"] == sum(f"{e.kept.judge} @ {e.kept.temperature:g}" == name for e in edits)
    assert sum(c["chosen"] for c in sheet["candidates"].values()) == len(edits)


def test_agreement_between_candidates_the_kept_ones_and_the_scores(
    edits: list[JudgedEdit], sheet: dict[str, Any]
) -> None:
    same: Counter[tuple[str, str]] = Counter()
    for edit in edits:
        for one, other in combinations(edit.candidates, 2):
            pair = tuple(f"{c.judge} @ {c.temperature:g}" for c in (one, other))
            same[pair] += sum(a == b for a, b in zip(one.verdicts, other.verdicts, strict=True))
    assert {(p["one"], p["other"]): p["same"]["k"] for p in sheet["between_candidates"]} == dict(same)
    right = [v == g for e in edits for v, g in zip(e.kept.verdicts, e.gold, strict=True)]
    assert (sheet["kept"]["accuracy"]["k"], sheet["kept"]["accuracy"]["n"]) == (sum(right), len(right))
    best = [sum(c.accuracy == e.kept.accuracy for c in e.candidates) for e in edits]
    assert sheet["kept"]["ties"] == sum(n > 1 for n in best)
    kept, _ = np.histogram([e.kept.score or 0 for e in edits], bins=np.arange(11))
    assert sheet["scores"]["kept"] == kept.tolist() and sum(sheet["scores"]["all"]) == 4 * len(edits)


def test_a_page_for_people_holds_the_same_and_no_word_of_a_model_breaks_it(folder: Path, sheet: dict[str, Any]) -> None:
    page = (folder / "datasheet.md").read_text()
    assert page == markdown(sheet) and "Licences" in page and '"torch"' in page
    for heading in ("## What is not in it", "## Gold", "## Candidates", "## Scores"):
        assert heading in page
    sheet = json.loads(json.dumps(sheet))
    sheet["lost"]["edit failed"]["reasons"] = {"a | b\n# c <b>": 1}
    assert "1 a \\| b # c &lt;b>" in markdown(sheet)


def test_agreement_of_nothing_is_no_number() -> None:
    nothing = Agreement()
    assert nothing.accuracy.value is None and nothing.balanced is None and nothing.kappa is None
    assert Agreement(tp=5).kappa is None and Agreement(tp=5).balanced is None
    assert Agreement(tp=1, tn=1).kappa == 1 and Agreement(fp=1, fn=1).kappa == -1


# -- single questions and a critique ---------------------------------------------------------------------------------


def asked(*seeds: int) -> Asked:
    from dataclasses import replace

    from PIL import Image

    from premeditate.trace import Checklist, ChecklistItem

    items = tuple(ChecklistItem(question=f"Is it {w}?", dimension="follow") for w in ("red", "blue", "old"))
    pair = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    return Asked(replace(sample(*pair, instruction="do it"), checklist=Checklist(items=items)), "the plan", seeds)


def judge_of(p_yes: dict[str, Any], critique: str = "", *, temperatures: tuple[float, ...] = (0.0,)) -> Apart:
    def say(request: ChatRequest) -> Any:
        if request.labels:
            p = next(p for word, p in p_yes.items() if word in request.text)
            return p if isinstance(p, str | Completion) else Completion(probabilities={"yes": p, "no": 1 - p})
        return critique

    return Apart(Fake(say, "terse"), temperatures, "apart:fake")


TERSE = "b2 is blurred | semantic 4 | quality 9 | prompt : paint b2 red"


def test_a_score_is_made_of_answers_and_a_critique() -> None:
    judge = judge_of({"red": 0.9, "blue": 0.2, "old": 0.6}, TERSE)
    ((found,),) = asyncio.run(judge.candidates([asked(0)]))
    assert found.verdicts == (True, False, True) and found.thought == "b2 is blurred"
    assert found.score == pytest.approx((10 * (0.9 + 0.2 + 0.6) / 3 + math.sqrt(4 * 9)) / 2, abs=1e-4)
    good = judge_of({"red": 1.0, "blue": 1.0, "old": 1.0}, "good | semantic 10 | quality 10 | prompt : x")
    ((found,),) = asyncio.run(good.candidates([asked(0)]))
    assert (found.thought, found.score, found.verdicts) == ("good", 10.0, (True,) * 3)
    chats = [r.text for call in good.reasoner.calls for r in call if not r.labels]
    assert chats == [get("terse").critique("do it", ["the plan"])]


@pytest.mark.parametrize(
    ("p_yes", "critique", "status", "why"),
    [
        ({"red": 1.0, "blue": 1.0, "old": "maybe"}, TERSE, "unparsable", "1 of 3 questions"),
        ({"red": 1.0, "blue": 1.0, "old": Completion(error="gone")}, TERSE, "unavailable", "gone"),
        ({"red": 1.0, "blue": 1.0, "old": 0.0}, "what a picture", "unparsable", "the critique is unparsable: what a"),
        ({"red": 1.0, "blue": 1.0, "old": 0.0}, "", "unparsable", "the critique is unparsable"),
    ],
)
def test_what_cannot_be_read_is_not_scored(p_yes: dict[str, Any], critique: str, status: str, why: str) -> None:
    ((found,),) = asyncio.run(judge_of(p_yes, critique).candidates([asked(0)]))
    assert found.status == status and why in found.problem and found.score is None and found.verdicts == ()


def test_verdicts_are_drawn_from_tempered_probabilities() -> None:
    for p in (0.0, 1e-12, 0.03, 0.5, 0.8, 1.0):
        for t in (0.3, 1.0, 2.5):
            a, b = p ** (1 / t), (1 - p) ** (1 / t)
            assert tempered(p, t) == pytest.approx(a / (a + b), abs=1e-12)
    assert tempered(1e-300, 1e-3) == 0.0 and tempered(1 - 1e-16, 1e-3) == 1.0
    temperatures = (0.0, 0.5, 2.0)
    judge = judge_of({"red": 0.7, "blue": 0.2, "old": 0.5}, TERSE, temperatures=temperatures)
    work = [asked(0, 2 * i, 2 * i + 1) for i in range(1500)]
    rows = asyncio.run(judge.candidates(work))
    assert rows == asyncio.run(judge.candidates(work))
    assert {row[0].verdicts for row in rows} == {(True, False, False)}
    for at, t in enumerate(temperatures[1:], 1):
        shares = np.mean([row[at].verdicts for row in rows], axis=0)
        assert np.allclose(shares, [tempered(p, t) for p in (0.7, 0.2, 0.5)], atol=0.04)
    assert len({row[1].score for row in rows}) == 1  # the score is made of the untempered ones
