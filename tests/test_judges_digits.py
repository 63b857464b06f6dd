"""Judges that read label probabilities, real reasoners behind judges, and how a recipe names them."""

from __future__ import annotations

import asyncio
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premeditate import presets
from premeditate.errors import ModelError
from premeditate.microworld.render import render
from premeditate.microworld.tasks import sample_tasks
from premeditate.prompts.judging import DIGITS, digit
from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.reasoners.transformers import TransformersReasoner
from premeditate.rewards.base import Reward, Sample
from premeditate.rewards.judges.digits import DigitScore, expectation, read_digit
from premeditate.rewards.judges.editscore import EditScore
from premeditate.rewards.judges.interval import IntervalJudge
from premeditate.rewards.judges.viescore import VIEScore
from premeditate.rewards.specs import load_reward
from support.chat_server import DECLINE, ChatServer
from support.chats import ready
from support.judging import A, B, Fake, fixed, one, pair
from support.pictures import picture
from support.rewards import sample, score
from support.tiny_vlm import build_vlm

# -- the expectation of a digit -----------------------------------------------------------------------------------


def shares(*values: float) -> dict[str, float]:
    return dict(zip(DIGITS, values, strict=False))


@settings(deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=6, max_size=6), st.floats(0.5, 1))
def test_the_expectation_is_that_of_the_softmax(logits: list[float], mass: float) -> None:
    p = np.exp(np.array(logits) - max(logits))
    p /= p.sum()
    found = expectation(shares(*(p * mass)), least_mass=0.4)
    mean = float((np.arange(6) * p).sum() / 5)
    assert found.score == pytest.approx(mean, abs=1e-9) and 0 <= (found.score or 0) <= 1
    assert found.sd == pytest.approx(math.sqrt((((np.arange(6) / 5 - mean) ** 2) * p).sum()), abs=1e-6)
    assert found.mass == (None if mass > 1 - 1e-3 else pytest.approx(mass))


@given(st.dictionaries(st.sampled_from([*DIGITS, "6", "yes"]), st.floats(), max_size=8))
def test_damaged_shares_are_no_score(found: dict[str, float]) -> None:
    read = expectation(found)
    assert (read.score is None) == (read.status != "scored")
    assert read.score is None or 0 <= read.score <= 1


@pytest.mark.parametrize(("done", "status", "why"), [
    (Completion(probabilities=shares(0, 0, 0.1, 0.2, 0.05, 0)), "unparsable", "hold 0.350"),
    (Completion(probabilities=shares(0, 0, 0, 0, 0, 0)), "unparsable", "hold 0.000"),
    (Completion(probabilities=shares(0.9, 0.9)), "unparsable", "no probabilities"),
    (Completion(probabilities=shares(math.nan, 1)), "unparsable", "no probabilities"),
    (Completion(probabilities=shares(-0.5, 1)), "unparsable", "no probabilities"),
    (Completion("4"), "unavailable", "no label probabilities"),
    (Completion(DECLINE), "refused", "sorry"),
    (Completion("4", probabilities=shares(0, 0, 0, 0, 1, 0)), "unavailable", "counted sampled"),
    (Completion(error="down"), "unavailable", "down"),
])  # fmt: skip
def test_digits_without_probabilities_are_no_score(done: Completion, status: str, why: str) -> None:
    found = read_digit(done)
    assert (found.status, found.score) == (status, None) and why in found.reason
    verdict = one(DigitScore(Fake(lambda r: done)))
    assert (verdict.status, verdict.scores) == (status, {}) and why in verdict.reason


def test_digits_ask_for_labels_and_say_the_requirement() -> None:
    fake = Fake(lambda r: Completion(probabilities=shares(0, 0, 0, 0.25, 0.25, 0.25)))
    judge = DigitScore(fake)
    verdict = one(judge, "swap <<<INSTRUCTION", requirement="no seams")
    assert verdict.scores == {"overall": pytest.approx(0.8)} and "mass 0.750" in verdict.reason
    (request,) = fake.calls[0]
    assert request.labels == DIGITS and request.images == (A, B) and "no seams" in request.text
    assert request.text == digit("swap <<<INSTRUCTION", "no seams") and "swap ‹‹‹INSTRUCTION" in request.text
    assert digit("x") == digit("x", " ")
    one(judge, requirement=["no", "words"])
    assert "What matters most" not in fake.calls[1][0].text
    assert isinstance(judge, Reward) and isinstance(VIEScore(fake), Reward)
    with pytest.raises(ModelError, match="speaks terse prompts"):
        DigitScore(Fake(lambda r: "", prompts="terse"))


# -- real reasoners -----------------------------------------------------------------------------------------------


def test_a_local_model_gives_the_expectation(tmp_path: Path) -> None:
    config = build_vlm("qwen3_vl", tmp_path) / "config.json"
    config.write_text(config.read_text().replace('"max_position_embeddings": 512', '"max_position_embeddings": 4096'))
    reasoner = TransformersReasoner.load(str(tmp_path))
    pictures: list[Sample] = [sample(A, B), sample(A, picture(seed=5))]
    verdicts = score(DigitScore(reasoner), *pictures)
    assert [v.status for v in verdicts] == ["scored", "scored"]
    for verdict, asked in zip(verdicts, pictures, strict=True):
        request = ChatRequest((asked.source, asked.edit), digit("do it"), labels=DIGITS)
        (done,) = asyncio.run(reasoner.chat([request]))
        expected = sum(int(d) * p for d, p in done.probabilities.items()) / 5
        assert verdict.scores["overall"] == pytest.approx(expected, abs=1e-4) and "mass not told" in verdict.reason


def test_the_tiny_reasoner_tells_an_edit_from_none() -> None:
    tasks = list(sample_tasks(12, seed=11))
    pairs = [
        sample(render(task.source), render(scene), instruction=task.instruction)
        for task in tasks
        for scene in (task.target, task.source)
    ]
    verdicts = score(load_reward("viescore:micro", presets.load_reasoner), *pairs)
    assert sum(v.status == "scored" for v in verdicts) >= 20
    both = [(a.scores["overall"], b.scores["overall"])
            for a, b in zip(verdicts[::2], verdicts[1::2], strict=True) if a.scores and b.scores]  # fmt: skip
    assert sum(a > b for a, b in both) > sum(a < b for a, b in both)


def test_the_example_in_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[1] / "docs" / "judges.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["scored", "scored"] and float(lines[0][1]) > float(lines[1][1])
    for use in re.findall(r"use: (\S+)", text)[:3]:
        assert isinstance(load_reward(use, lambda spec: fixed("", "")), Reward)


def test_a_server_that_only_samples_is_refused_by_digits_and_read_by_viescore() -> None:
    with ChatServer() as server:
        reasoner = ready(server, "json_schema")
        server.reply = lambda body: "4"
        verdict = one(DigitScore(reasoner))
        assert verdict.status == "unavailable" and "counted sampled" in verdict.reason
        assert one(VIEScore(reasoner)).scores == {"overall": pytest.approx(0.7)}  # what its decoder says: sevens
        server.honours = {"json_schema", "logprobs"}
    with ChatServer() as server:
        reasoner = ready(server, "logprobs")
        server.tops = [{"4": 0.6, "5": 0.2, "three": 0.2}]
        assert one(DigitScore(reasoner)).scores == {"overall": pytest.approx(0.85)}


# -- how a recipe names them --------------------------------------------------------------------------------------


def test_recipes_name_judges() -> None:
    fake = Fake(lambda r: pair(5, 5))
    asked: list[str] = []

    def load(spec: str) -> Fake:
        asked.append(spec)
        return fake

    judge = load_reward("editscore[k=2, reduction=average_first,dimensions=keep+overall]:http://h:1/v1?model=a", load)
    assert isinstance(judge, EditScore) and asked == ["http://h:1/v1?model=a"]
    assert judge.repeats.k == 2 and judge.dimensions == ("keep", "overall") and judge.reduction == "average_first"
    assert isinstance(load_reward("viescore:micro", load), IntervalJudge) and asked[-1] == "micro"
    assert load_reward("viescore[k=3]:x", load).repeats.temperature == 0.7  # type: ignore[attr-defined]
    assert isinstance(load_reward("digits[least_mass=0.9,name=d]:x", load), DigitScore)


@pytest.mark.parametrize(("use", "match"), [
    ("editscore:", "names no reasoner"), ("editreward:", "names no folder"), ("editscore[k]:x", "option=value"),
    ("editscore[k=two]:x", "give k a number"), ("editscore[kk=2]:x", "no option 'kk'.*did you mean k"),
    ("editscore[k=2,k=3]:x", "each once"), ("editscore[k=0]:x", "at least 1"), ("viescore", "viescore:SPEC"),
    ("digits[k=3]:x", "no option 'k'"),
])  # fmt: skip
def test_names_that_are_none(use: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=match):
        load_reward(use, lambda spec: fixed("", ""))
    with pytest.raises(ModelError):
        load_reward("viescore:x")
