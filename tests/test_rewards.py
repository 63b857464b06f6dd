"""Rewards by themselves: functions, verifiers, and the micro world's exact ones."""

from __future__ import annotations

import asyncio
import math
import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from premeditate.errors import ModelError
from premeditate.microworld.checker import NotAScene, decode, is_exact
from premeditate.microworld.models.editor_data import draw
from premeditate.microworld.render import CELL, SIDE, render
from premeditate.microworld.reward import graded, success
from premeditate.microworld.scene import CELLS, GRID, Scene, random_scene, random_thing
from premeditate.microworld.verifier import ExactVerifier
from premeditate.prompts.terse import Terse
from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.rewards.base import Reward, RewardError, Sample
from premeditate.rewards.checklist import ChecklistVerifier
from premeditate.rewards.function import FunctionReward
from premeditate.rewards.preservation import Preservation
from premeditate.rewards.specs import as_reward, load_reward
from premeditate.rewards.verified import VerifiedReward
from premeditate.trace import Checklist, ChecklistItem, Task, Verdict
from support.rewards import PICTURE, noise, sample, score

# -- functions --------------------------------------------------------------------------------------------------------


def test_a_function_gives_numbers_or_nothing() -> None:
    torch = pytest.importorskip("torch")
    given_ = [1, 0.5, True, None, math.nan, np.float32(0.25), torch.tensor(2.0), np.array([3.0])]
    verdicts = score(FunctionReward(lambda ss: given_, name="f"), *[sample(PICTURE, PICTURE)] * 8)
    assert [v.scores.get("score") for v in verdicts] == [1, 0.5, 1, None, None, 0.25, 2, 3]
    assert [v.status for v in verdicts] == ["scored"] * 3 + ["unavailable"] * 2 + ["scored"] * 3
    assert verdicts[3].reason == "the function gave no score" and verdicts[0].verifier == "f"


@pytest.mark.parametrize("kind", [list, tuple, np.array, iter])
def test_any_list_of_numbers_will_do(kind: Any) -> None:
    verdicts = score(FunctionReward(lambda ss: kind([0.0, 1.0])), *[sample(PICTURE, PICTURE)] * 2)
    assert [v.scores for v in verdicts] == [{"score": 0}, {"score": 1}]


def test_a_function_announces_its_dimensions_and_may_leave_some_out() -> None:
    def both(ss: Sequence[Sample]) -> list[Any]:
        return [{"a": 1, "b": None}, {"b": 2}, {"a": 0, "b": 3}, None]

    both.dimensions = ("a", "b")  # type: ignore[attr-defined]
    reward = FunctionReward(both)
    assert isinstance(reward, Reward) and (reward.name, reward.dimensions) == ("both", ("a", "b"))
    verdicts = score(reward, *[sample(PICTURE, PICTURE)] * 4)
    assert [v.scores for v in verdicts] == [{"a": 1}, {"b": 2}, {"a": 0, "b": 3}, {}]
    assert [v.reason for v in verdicts[:2]] == ["the function gave no b", "the function gave no a"]


def test_a_plain_function_runs_in_a_daemon_thread_and_an_async_one_on_the_loop() -> None:
    seen: dict[str, threading.Thread] = {}

    def plain(ss: Sequence[Sample]) -> list[float]:
        seen["plain"] = threading.current_thread()
        return [1.0]

    async def asynchronous(ss: Sequence[Sample]) -> list[float]:
        seen["async"] = threading.current_thread()
        return [1.0]

    for fn in (plain, asynchronous, lambda ss: asynchronous(ss)):
        assert score(FunctionReward(fn), sample(PICTURE, PICTURE))[0].scores == {"score": 1.0}
    assert seen["plain"].daemon and seen["plain"] is not threading.main_thread()
    assert seen["async"] is threading.main_thread()
    assert FunctionReward(asynchronous).concurrent and not FunctionReward(plain).concurrent


def test_what_a_function_raises_comes_out() -> None:
    def broken(ss: Sequence[Sample]) -> list[float]:
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        score(FunctionReward(broken), sample(PICTURE, PICTURE))
    with pytest.raises(RewardError, match="returned 0 values for 1 samples; return a list"):
        score(FunctionReward(lambda ss: []), sample(PICTURE, PICTURE))
    for answer in ({0.5, 0.25}, frozenset({0.5, 0.25}), {0.5: "a", 0.25: "b"}.keys(), {"a": 1, "b": 2}, "ab"):
        with pytest.raises(RewardError, match="instead of a list; return a list"):
            score(FunctionReward(lambda ss, answer=answer: answer), *[sample(PICTURE, PICTURE)] * 2)
    with pytest.raises(ValueError, match="needs a function"):
        FunctionReward(3)  # type: ignore[arg-type]


def test_whatever_makes_a_reward_is_taken() -> None:
    made = [as_reward(found) for found in (graded, Preservation, lambda: graded, ExactVerifier, ExactVerifier())]
    assert [r.name for r in made] == ["graded", "preservation", "graded", "exact", "exact"]
    assert made[0] is graded and isinstance(as_reward(lambda ss: [1]), FunctionReward)
    assert all(isinstance(r, Reward) for r in made)
    with pytest.raises(ModelError, match="is not a reward"):
        as_reward(7)


# -- verifiers --------------------------------------------------------------------------------------------------------


class Judge:
    """Writes a checklist of two questions for every instruction but "mumble" and "down", and answers "yes" to those
    that hold the word "yes"."""

    prompts = "terse"
    name = "judge"

    def __init__(self) -> None:
        self.written: list[str] = []
        self.answered = 0
        self.closed = False

    async def chat(self, requests: Sequence[ChatRequest]) -> list[Completion]:
        return [self._one(r) for r in requests]

    def _one(self, request: ChatRequest) -> Completion:
        kind, _, text = request.text.partition(" : ")
        if kind == "answer":
            self.answered += 1
            assert len(request.images) == 2
            yes = float("yes" in text)
            return Completion(probabilities={"yes": yes, "no": 1 - yes})
        assert kind == "checklist" and len(request.images) == 1
        self.written.append(text)
        if text == "down":
            return Completion(error="connection refused")
        if text == "mumble":
            return Completion("hm")
        kinds = (("yes", "follow"), ("no", "follow"), ("yes", "keep"))
        items = [ChecklistItem(question=f"{text} {word}?", dimension=dimension) for word, dimension in kinds]
        return Completion(Terse().write_checklist(items))

    async def aclose(self) -> None:
        self.closed = True


def test_a_checklist_is_written_once_per_task_and_answered_for_every_sample() -> None:
    judge = Judge()
    reward = load_reward("reasoner:somewhere", lambda spec: judge)
    assert reward.name == "checklist" and reward.dimensions == ("follow", "keep", "quality")
    other = noise(48, 40, seed=9)
    asked = [
        sample(PICTURE, other, "g1", instruction="one"),
        sample(PICTURE.copy(), PICTURE, "g2", instruction="one"),  # the same task by content
        sample(other, PICTURE, "g3", instruction="one"),  # another picture
        sample(PICTURE, PICTURE, "g4", instruction="two"),
    ]
    verdicts = score(reward, *asked)
    assert judge.written == ["one", "one", "two"] and judge.answered == 12
    assert all(v.scores == {"follow": 0.5, "keep": 1.0} and v.status == "scored" for v in verdicts)
    score(reward, *asked)
    assert len(judge.written) == 3
    asyncio.run(reward.aclose())  # type: ignore[attr-defined]
    assert judge.closed


def test_a_checklist_that_could_not_be_written_costs_its_task_only_and_is_asked_for_again() -> None:
    judge = Judge()
    reward = VerifiedReward(ChecklistVerifier(judge))
    asked = [sample(PICTURE, PICTURE, instruction=text) for text in ("mumble", "good", "down", "mumble")]
    for _ in range(2):
        verdicts = score(reward, *asked)
        assert [v.status for v in verdicts] == ["unparsable", "scored", "unavailable", "unparsable"]
        assert [bool(v.scores) for v in verdicts] == [False, True, False, False]
        assert "connection refused" in verdicts[2].reason and "hm" in verdicts[0].reason
    assert judge.written == ["mumble", "good", "down", "mumble", "down"]


def test_a_checklist_that_the_task_brings_is_used_and_nobody_is_asked_for_one() -> None:
    judge = Judge()
    reward = VerifiedReward(ChecklistVerifier(judge))
    brought = [{"question": "yes?", "dimension": "quality"}, {"question": "well?", "dimension": "keep"}]
    own = Checklist(items=(ChecklistItem(question="yes?", dimension="follow"),))
    verdicts = score(
        reward,
        sample(PICTURE, PICTURE, checklist=brought),
        Sample(Task(id="t", images=(), instruction="x", meta={"checklist": brought}), PICTURE, PICTURE, own),
        sample(PICTURE, PICTURE, checklist=[{"question": "yes?"}]),
        sample(PICTURE, PICTURE, checklist="yes?"),
    )
    assert [v.scores for v in verdicts] == [{"quality": 1.0, "keep": 0.0}, {"follow": 1.0}, {}, {}]
    assert [v.status for v in verdicts[2:]] == ["unparsable"] * 2 and "meta.checklist" in verdicts[2].reason
    assert judge.written == []


@pytest.mark.parametrize(("questions", "why"), [
    (("yes?", ""), "item 2 asks nothing"), (("?!", "yes?"), "item 1 asks nothing"), (["yes?"] * 65, "it has 65 items"),
])  # fmt: skip
def test_a_checklist_that_is_none_is_never_answered_whichever_way_it_comes(questions: Sequence[str], why: str) -> None:
    judge = Judge()
    items = [ChecklistItem(question=question, dimension="keep") for question in questions]
    by_meta = sample(PICTURE, PICTURE, checklist=[item.model_dump() for item in items])
    by_sample = Sample(by_meta.task, PICTURE, PICTURE, Checklist(items=tuple(items)))
    most = replace(by_sample, checklist=Checklist(items=(ChecklistItem(question="a", dimension="keep"),) * 64))
    verdicts = score(VerifiedReward(ChecklistVerifier(judge)), by_meta, by_sample, most)
    assert [v.status for v in verdicts] == ["unparsable"] * 2 + ["scored"] and judge.written == []
    assert [v.scores for v in verdicts[:2]] == [{}, {}] and all(why in v.reason for v in verdicts[:2])
    assert "meta.checklist" in verdicts[0].reason


def test_a_verifier_without_a_reasoner_judges_what_it_can() -> None:
    example = draw(random.Random(0))
    truth = {
        "source": list(example.source.codes),
        "checklist": [{"question": "is every shape sharp?", "dimension": "quality"}],
    }
    with_truth = sample(render(example.source), render(example.target), microworld=truth)
    without = sample(render(example.source), render(example.target))
    verdicts = score(VerifiedReward(ExactVerifier()), with_truth, without)
    assert verdicts[0].scores == {"quality": 1.0} and verdicts[1].status == "unavailable"
    assert "there is no checklist" in verdicts[1].reason


def test_a_verifier_that_loses_a_verdict_is_an_error() -> None:
    class Short(ExactVerifier):
        async def verify(self, samples: Sequence[Sample]) -> list[Verdict]:
            return []

        def wants_checklist(self, task: Task) -> bool:
            return False

    with pytest.raises(RewardError, match="returned 0 verdicts for 1 samples"):
        score(VerifiedReward(Short()), sample(PICTURE, PICTURE))


# -- the micro world --------------------------------------------------------------------------------------------------


def micro(source: Scene, target: Scene, edit: Image.Image) -> Sample:
    truth = {"source": list(source.codes), "target": list(target.codes)}
    return sample(render(source), edit, microworld=truth)


def test_a_perfect_edit_and_an_untouched_one() -> None:
    examples = [draw(random.Random(seed), steps=1 + seed % 2) for seed in range(20)]
    perfect = [micro(e.source, e.target, render(e.target)) for e in examples]
    lazy = [micro(e.source, e.target, render(e.source)) for e in examples]
    assert all(v.scores == {"follow": 1, "keep": 1, "quality": 1} for v in score(graded, *perfect))
    assert all(v.scores == {"follow": 0, "keep": 1, "quality": 1} for v in score(graded, *lazy))
    assert [v.scores["success"] for v in score(success, *perfect, *lazy)] == [1.0] * 20 + [0.0] * 20


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), wrong=st.integers(0, 6), blurred=st.integers(0, 4), scale=st.integers(1, 3))
def test_graded_and_success_against_the_checker_cell_by_cell(seed: int, wrong: int, blurred: int, scale: int) -> None:
    rng = random.Random(seed)
    example = draw(rng, steps=rng.choice([1, 2]))
    scene = example.target
    for index in rng.sample(range(CELLS), wrong):
        scene = scene.put(index, rng.choice([None, random_thing(rng)]))
    edit = render(scene)
    for index in rng.sample(range(CELLS), blurred):
        left, top = index % GRID * CELL, index // GRID * CELL
        box = (left, top, left + CELL, top + CELL)
        edit.paste(edit.crop(box).filter(ImageFilter.GaussianBlur(4)), box)
    edit = edit.resize((SIDE * scale, SIDE * scale), Image.Resampling.NEAREST)
    seen = decode(edit)
    right = [seen.sharp[i] and seen.scene[i] == example.target[i] for i in range(CELLS)]
    had_to = set(example.source.changed(example.target))
    follow = [right[i] for i in range(CELLS) if i in had_to]
    keep = [right[i] for i in range(CELLS) if i not in had_to]
    asked = micro(example.source, example.target, edit)
    (got,), (done,) = score(graded, asked), score(success, asked)
    assert got.scores == pytest.approx(
        {"follow": sum(follow) / len(follow), "keep": sum(keep) / len(keep), "quality": sum(seen.sharp) / CELLS}
    )
    assert done.scores == {"success": float(is_exact(example.target, seen))}


def test_a_wrecked_picture_scores_low_and_is_not_missing() -> None:
    example = draw(random.Random(3))
    wrecked = [Image.new("RGB", (64, 64), "black"), noise(64, 64), noise(96, 40), Image.new("L", (10, 10))]
    for edit in wrecked:
        with pytest.raises(NotAScene):
            decode(edit)
    asked = [micro(example.source, example.target, edit) for edit in wrecked]
    for verdict in score(graded, *asked):
        assert verdict.status == "scored" and set(verdict.scores) == {"follow", "keep", "quality"}
        assert max(verdict.scores.values()) < 0.2
    assert [v.scores["success"] for v in score(success, *asked)] == [0.0] * 4


def test_success_needs_a_picture_of_a_scene_s_size() -> None:
    """What the checker refuses to read is no success, even where it could be shrunk to the right picture."""
    example = draw(random.Random(4))
    odd = render(example.target).resize((200, 200), Image.Resampling.NEAREST)
    assert score(success, micro(example.source, example.target, odd))[0].scores == {"success": 0.0}


def test_a_task_without_its_truth_is_missing_and_leaves_the_others_alone() -> None:
    example = draw(random.Random(5))
    good = micro(example.source, example.target, render(example.target))
    codes = list(example.source.codes)
    bad: list[Any] = [None, 3, {}, {"source": codes}, {"source": codes, "target": codes[:15]},
                      {"source": codes, "target": [99] * 16}, {"source": codes, "target": ["a"] * 16}]  # fmt: skip
    asked = [sample(render(example.source), render(example.target), microworld=meta) for meta in bad]
    for reward in (graded, success):
        verdicts = score(reward, *asked, good)
        assert [v.status for v in verdicts] == ["unavailable"] * len(bad) + ["scored"]
        assert all(v.scores == {} and "source and target" in v.reason for v in verdicts[:-1])


def test_a_dimension_without_a_cell_is_absent() -> None:
    scene = random_scene(random.Random(6))
    (verdict,) = score(graded, micro(scene, scene, render(scene)))
    assert verdict.scores == {"keep": 1.0, "quality": 1.0}
