"""Judges that give numbers: the questions, the readers, the formulas, and what becomes of answers that are none."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from premeditate.errors import ModelError
from premeditate.prompts.judging import PARTS, GeneralInterval, interval, pair_schema, read_pair
from premeditate.prompts.terse import Terse
from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.rewards.judges.digits import DigitScore
from premeditate.rewards.judges.editscore import EditScore
from premeditate.rewards.judges.viescore import VIEScore
from premeditate.rewards.judges.votes import Repeats, Votes
from premeditate.trace import Verdict
from support.chat_server import DECLINE
from support.judging import NAMES, A, B, Fake, fixed, one, pair
from support.pictures import picture
from support.rewards import panel_of, sample, score

# -- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    '{"reasoning": "fine", "score": [7, 9]}', 'Well:\n```json\n{"score": [7, 9]}\n```', '{"score": ["7", "9/10"]}',
    '{"success": 7, "overedit": 9}', '{"score": {"success": 7, "overedit": 9.0}}', "<score>[7, 9]</score>",
    '<think>{"score": [1, 1]}</think>{"scores": [7, 9]}', '{"score": [7, 9], "success": 7, "overedit": 9}',
    '{"score": [1, 1]}, no: {"score": [7, 9]}', '```json\n{"score": [1, 1]}\n```\n```json\n{"score": [7, 9]}\n```',
    'As {reasoning, score} or {"a": ...}: {"score": [7, 9]} :-{', "<score>[7, 9]</score> So: <score>[7, 9]</score>",
    '{"score": [7, 9]} <score>[7, 9]</score>',
])  # fmt: skip
def test_answers_that_can_be_read(text: str) -> None:
    assert read_pair(text, NAMES, 10)[0] == (7, 9)


@pytest.mark.parametrize("text", [
    "", "7", "7, 9", "score: 7 and 9", '{"score": 7}', '{"score": [7]}', '{"score": [7, 9, 8]}', '{"score": [7, 11]}',
    '{"score": [-1, 9]}', '{"score": [true, 9]}', '{"score": [NaN, 9]}', '{"score": [1e999, 9]}', '{"score": [7]',
    '{"score": ["7/25", 9]}', '{"score": ["seven", 9]}', '{"score": [7, 9', '{"success": 7}', '{"score": [[7], [9]]}',
    '{"score": [7, 9], "success": 2, "overedit": 9}', '{"score": "79"}', '<think>{"score": [7, 9]}',
    '{"reasoning": "...", "score": [done, left_alone]}', '{"score": ["٧", 9]}', '{"score": "[7, 9]"}',
    '{"score": [7, 9]} then {"score": [9,', '{"draft": {"score": [7, 9]}, "score": [9', '{"score": [7, 9]} {"a": "b',
    '{"score": [9, 9], "score": [7, 9]}', '{"score": {"success": 7, "overedit": 9}, "score": [7, 9]}',
    '{"success": 1, "overedit": 9, "success": 7}', "{\"score\": [7, 9]} then {'score': [1, 1]}", '{"score": [7, 9]} {"',
    '{"score": [7, 9]} then {"reasoning": "fine", "score": [1 1]}', '{"score": [7, 9]}' + "{x}" * 64 + "{",
    "<score>[7, 9]</score> on second thought <score>[1, 1]</score>", "<score>[7, 9]</score> then <score>[1,",
    '{"score": [7, 9]} <score>[1, 1]</score>',
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
    one(VIEScore(fake, k=2))
    one(VIEScore(fake, k=2, temperature=0.3))
    assert [{r.temperature for r in call} for call in fake.calls[1:]] == [{0.7}, {0.3}]


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
    (lambda f: VIEScore(f, k=3, temperature=-1), "0 or more"),
    (lambda f: VIEScore(f, k=3, temperature=math.nan), "temperature is nan"),
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
