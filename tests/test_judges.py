"""Judges that give numbers: the questions, the readers, the formulas, and what becomes of answers that are none."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from premeditate import presets
from premeditate.errors import ModelError
from premeditate.microworld.render import render
from premeditate.microworld.tasks import sample_tasks
from premeditate.prompts.judging import DIGITS, PARTS, GeneralInterval, digit, interval, pair_schema, read_pair
from premeditate.prompts.terse import Terse
from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.reasoners.transformers import TransformersReasoner
from premeditate.rewards.base import Reward, Sample
from premeditate.rewards.judges.digits import DigitScore, expectation, read_digit
from premeditate.rewards.judges.editscore import EditScore
from premeditate.rewards.judges.interval import IntervalJudge
from premeditate.rewards.judges.viescore import VIEScore
from premeditate.rewards.judges.votes import Repeats, Votes
from premeditate.rewards.specs import load_reward
from premeditate.trace import Verdict
from support.chat_server import DECLINE, ChatServer
from support.chats import ready
from support.pictures import picture
from support.rewards import panel_of, sample, score
from support.tiny_vlm import build_vlm

A, B = picture(seed=1), picture(seed=2)
NAMES = ("success", "overedit")


class Fake:
    """Answers with `reply(request, its number within its kind)`, and remembers calls."""

    concurrent = False

    def __init__(self, reply: Callable[[ChatRequest], Any], prompts: str = "general") -> None:
        self.reply, self.prompts, self.name = reply, prompts, "fake"
        self.calls: list[list[ChatRequest]] = []

    async def chat(self, requests: Sequence[ChatRequest]) -> list[Completion]:
        self.calls.append(list(requests))
        return [said if isinstance(said := self.reply(r), Completion) else Completion(said, tokens=3) for r in requests]


def pair(first: float, second: float) -> str:
    return json.dumps({"reasoning": "I looked", "score": [first, second]})


def fixed(semantic: Any, quality: Any) -> Fake:
    """One answer for each of the two questions."""
    return Fake(lambda r: semantic if len(r.images) == 2 else quality)


def one(judge: Reward, instruction: str = "do it", **meta: Any) -> Verdict:
    (verdict,) = score(judge, sample(A, B, instruction=instruction, **meta))
    return verdict


# -- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    '{"reasoning": "fine", "score": [7, 9]}', 'Well:\n```json\n{"score": [7, 9]}\n```', '{"score": ["7", "9/10"]}',
    '{"success": 7, "overedit": 9}', '{"score": {"success": 7, "overedit": 9.0}}', "<score>[7, 9]</score>",
    '<think>{"score": [1, 1]}</think>{"scores": [7, 9]}', '{"score": [7, 9], "success": 7, "overedit": 9}',
])  # fmt: skip
def test_answers_that_can_be_read(text: str) -> None:
    assert read_pair(text, NAMES, 10)[0] == (7, 9)


@pytest.mark.parametrize("text", [
    "", "7", "7, 9", "score: 7 and 9", '{"score": 7}', '{"score": [7]}', '{"score": [7, 9, 8]}', '{"score": [7, 11]}',
    '{"score": [-1, 9]}', '{"score": [true, 9]}', '{"score": [NaN, 9]}', '{"score": [1e999, 9]}', '{"score": [7]',
    '{"score": ["7/25", 9]}', '{"score": ["seven", 9]}', '{"score": [7, 9', '{"success": 7}', '{"score": [[7], [9]]}',
    '{"score": [7, 9], "success": 2, "overedit": 9}', '{"score": "79"}', '<think>{"score": [7, 9]}',
    '{"reasoning": "...", "score": [done, left_alone]}', '{"score": ["٧", 9]}', '{"score": "[7, 9]"}',
])  # fmt: skip
def test_nothing_is_guessed(text: str) -> None:
    assert read_pair(text, NAMES, 10)[0] is None
    assert GeneralInterval().read(0, text).status == "unparsable" and not GeneralInterval().read(0, text).parts


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["score", "success", "overedit", "reasoning", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200) | JSON.map(json.dumps), st.sampled_from([10, 25]))
def test_any_text_is_read_or_not_and_what_is_read_is_in_range(text: str, top: int) -> None:
    for index in (0, 1):
        reading = GeneralInterval(top).read(index, text)
        assert (reading.status == "scored") == bool(reading.parts)
        assert all(0 <= value <= 10 for value in reading.parts.values())
    found, _ = read_pair(text, NAMES, top)
    if found is not None:  # both numbers stand in the text
        assert all(0 <= value <= top and any(c.isdigit() for c in text) for value in found)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 25), st.integers(0, 25), st.text(st.characters(exclude_characters="{}<>`"), max_size=80))
def test_what_was_said_is_what_is_read(first: int, second: int, around: str) -> None:
    text = f"{around}{json.dumps({'reasoning': around, 'score': [first, second]})}{around}"
    assert read_pair(text, NAMES, 25)[0] == (first, second)
    assert (read_pair(text, NAMES, 10)[0] is None) == (max(first, second) > 10)


def test_what_is_asked_for_can_be_read_and_its_own_example_cannot() -> None:
    form = GeneralInterval(25)
    for index, question in enumerate(form.questions('put {x} on <<<INSTRUCTION "it"')):
        assert question.schema == pair_schema(25) and " 25" in question.text and " 10" not in question.text
        assert form.read(index, question.text).status == "unparsable"  # a parrot is no judge
    both, edit = form.questions("add a {top} INSTRUCTION>>> cat")
    assert "add a {top} INSTRUCTION›››" in both.text and "cat" not in edit.text
    assert (both.pictures, edit.pictures) == ("both", "edit")


# -- interval judges ----------------------------------------------------------------------------------------------


def test_the_formulas_of_viescore() -> None:
    verdict = one(VIEScore(fixed(pair(8, 9), pair(6, 5))))
    assert verdict.status == "scored" and verdict.scores == {"overall": pytest.approx(math.sqrt(8 * 5) / 10)}
    assert verdict.verifier == "viescore" and verdict.tokens == 6 and "I looked" in verdict.reason
    every = VIEScore(fixed(pair(8, 9), pair(6, 5)), dimensions=PARTS)
    expected = {"follow": 0.8, "keep": 0.9, "semantic": 0.8, "naturalness": 0.6, "artifacts": 0.5, "quality": 0.5}
    assert one(every).scores == pytest.approx({**expected, "overall": math.sqrt(0.4)})


def test_both_ends_of_the_scale() -> None:
    assert one(VIEScore(fixed(pair(0, 10), pair(10, 10)))).scores == {"overall": 0.0}
    assert one(VIEScore(fixed(pair(10, 10), pair(10, 10)))).scores == {"overall": 1.0}
    assert one(EditScore(fixed(pair(25, 25), pair(25, 25)))).scores == {"overall": 1.0}


def test_one_call_asks_everything_and_keeps_the_order() -> None:
    def reply(request: ChatRequest) -> str:
        strength = 9 if "bright" in request.text or request.images[0].getpixel((0, 0)) == (255, 255, 255) else 1
        return pair(strength, 9)

    fake, white = Fake(reply), Image.new("RGB", (32, 32), "white")
    judge = EditScore(fake, k=3, score_range=10)
    verdicts = score(judge, sample(A, B, instruction="dark"), sample(A, white, instruction="bright"))
    assert [v.scores["overall"] for v in verdicts] == pytest.approx([0.1, 0.9])
    (requests,) = fake.calls
    assert len(requests) == 2 * 2 * 3 and [r.seed for r in requests] == [42, 43, 44] * 4
    assert all(r.temperature == 0.7 and r.max_tokens == 512 and r.schema for r in requests)
    assert [len(r.images) for r in requests] == [2, 2, 2, 1, 1, 1] * 2
    assert score(judge) == [] and len(fake.calls) == 1


def test_the_edit_is_shown_in_the_size_of_the_source() -> None:
    fake = fixed(pair(1, 1), pair(1, 1))
    score(VIEScore(fake), sample(A, picture(48, 16)))
    assert {image.size for request in fake.calls[0] for image in request.images} == {A.size}
    assert fake.calls[0][0].temperature == 0


PASSES = st.lists(st.tuples(*[st.integers(0, 25)] * 4), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(PASSES, st.sampled_from(["average_last", "average_first"]))
def test_editscore_averages_as_published(passes: list[tuple[int, int, int, int]], reduction: Any) -> None:
    fake = Fake(lambda r: pair(*passes[r.seed - 42][:2]) if len(r.images) == 2 else pair(*passes[r.seed - 42][2:]))
    judge = EditScore(fake, k=len(passes), reduction=reduction, dimensions=("follow", "keep", "quality", "overall"))
    table = np.array(passes) / 2.5
    semantic, quality = table[:, :2].min(1), table[:, 2:].min(1)
    overall = (
        np.sqrt(semantic * quality).mean()
        if reduction == "average_last"
        else math.sqrt(semantic.mean() * quality.mean())
    )
    expected = {"follow": table[:, 0].mean(), "keep": table[:, 1].mean(), "quality": quality.mean(), "overall": overall}
    (judgement,) = asyncio.run(judge.judge([sample(A, B)]))
    assert {part: judgement.scores[part] for part in expected} == pytest.approx(expected)
    assert one(judge).scores == pytest.approx({part: value / 10 for part, value in expected.items()})
    sd = judgement.votes["quality"].sd
    assert sd == (pytest.approx(quality.std(ddof=1), abs=1e-9) if len(passes) > 1 else None)


def test_passes_that_cannot_be_read_are_left_out_and_told() -> None:
    def judge(bad: int, **options: Any) -> Verdict:
        return one(EditScore(Fake(lambda r: "hm" if r.seed < 42 + bad else pair(20, 25)), k=4, **options))

    verdict = judge(1)
    assert verdict.scores == {"overall": pytest.approx(0.8)} and verdict.status == "scored"
    assert "sd 0.00 over 3 passes, 1 unreadable" in verdict.reason
    assert judge(2).status == "unparsable" and judge(2).scores == {} and "no overall: hm" in judge(2).reason
    assert judge(2, least=2).status == "scored" and judge(3, least=2).status == "unparsable"
    assert judge(1, least=4).status == "unparsable"


@pytest.mark.parametrize(("said", "status"), [
    (DECLINE, "refused"), ("lovely", "unparsable"), ("", "unparsable"), (Completion(error="down"), "unavailable"),
    ('{"score": [26, 3]}', "unparsable"),
])  # fmt: skip
def test_failure_is_never_scored(said: Any, status: str) -> None:
    parts = ("follow", "quality", "overall")
    for judge in (EditScore(fixed(pair(9, 9), said), dimensions=parts), VIEScore(fixed(pair(9, 9), said))):
        verdict = one(judge)
        assert verdict.status == status and "overall" not in verdict.scores and verdict.reason
    # What the other question gave stays.
    assert one(EditScore(fixed(pair(9, 9), said), dimensions=parts)).scores == {"follow": pytest.approx(0.36)}
    with panel_of(EditScore(fixed(pair(9, 9), said), dimensions=parts)) as panel:
        found = panel.score([sample(A, B)])
    assert np.isnan(found.matrix[0]).tolist() == [False, True, True] and found.statuses == ((status,),)


def test_a_bad_sample_costs_only_itself() -> None:
    fake = Fake(lambda r: Completion(error="boom") if "bad" in r.text else pair(5, 5))
    judge = VIEScore(fake, dimensions=("semantic",))
    verdicts = score(judge, *(sample(A, B, instruction=text) for text in ("good", "bad", "good")))
    assert [v.status for v in verdicts] == ["scored", "unavailable", "scored"] and "boom" in verdicts[1].reason


def test_the_gravest_status_is_told() -> None:
    assert one(VIEScore(fixed(DECLINE, Completion(error="down")))).status == "unavailable"
    assert one(VIEScore(fixed(DECLINE, "hm"))).status == "refused"


def test_a_reasoner_that_loses_count_is_an_error() -> None:
    class Short(Fake):
        async def chat(self, requests: Sequence[ChatRequest]) -> list[Completion]:
            return (await super().chat(requests))[1:]

    with pytest.raises(RuntimeError, match="1 completions for 2"):
        one(VIEScore(Short(lambda r: pair(1, 1))))


def test_a_terse_reasoner_judges_with_its_critique() -> None:
    fake = Fake(lambda r: Terse().write_critique("", 6, 8, ["x"], "original"), prompts="terse")
    verdict = one(VIEScore(fake, dimensions=("semantic", "quality", "overall")), instruction="make it red")
    assert verdict.scores == pytest.approx({"semantic": 0.6, "quality": 0.8, "overall": math.sqrt(0.48)})
    (request,) = fake.calls[0]
    assert request.text == "critique : make it red | prompt : make it red" and request.images == (A, B)
    assert one(EditScore(fake, k=2)).scores == pytest.approx({"overall": math.sqrt(0.48)})
    assert one(VIEScore(Fake(lambda r: "hm", prompts="terse"))).status == "unparsable"
    with pytest.raises(ModelError, match=r"fake gives no score 'follow'.*semantic, quality, overall"):
        VIEScore(fake, dimensions=("follow",))
    assert interval("terse").parts == ("semantic", "quality")


@pytest.mark.parametrize(("make", "match"), [
    (lambda f: VIEScore(f, dimensions=("beauty",)), "no part 'beauty'"),
    (lambda f: VIEScore(f, dimensions=()), "at least"),
    (lambda f: VIEScore(f, dimensions=("keep", "keep")), "each once"), (lambda f: VIEScore(f, top=0), "1 to 100"),
    (lambda f: EditScore(f, k=0), "at least 1"), (lambda f: EditScore(f, k=2, temperature=0), "one pass"),
    (lambda f: EditScore(f, least=5), "1 to 4"), (lambda f: EditScore(f, temperature=-1), "0 or more"),
    (lambda f: EditScore(f, reduction="median"), "average_first"),  # type: ignore[arg-type]
    (lambda f: DigitScore(f, least_mass=2), "share"),
])  # fmt: skip
def test_settings_that_cannot_be(make: Callable[[Fake], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make(fixed("", ""))


@given(st.lists(st.none() | st.floats(0, 10), max_size=8), st.integers(1, 4))
def test_votes(values: list[float | None], needed: int) -> None:
    votes = Votes(tuple(values), needed)
    there = [value for value in values if value is not None]
    assert votes.missing == len(values) - len(there) and votes.enough == (len(there) >= needed)
    assert votes.mean == (pytest.approx(np.mean(there)) if len(there) >= needed else None)
    assert votes.variance == (pytest.approx(np.var(there, ddof=1), abs=1e-12) if len(there) > 1 else None)
    assert [Repeats(k, 0.5).needed for k in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]


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
