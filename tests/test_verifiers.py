"""Verifiers: the micro world's exact one, and the checklist's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from PIL import Image

from micro_fakes import Oracle, strip, to_task
from premeditate.engine.memory import MemoryStore
from premeditate.microworld.render import render
from premeditate.microworld.scene import Scene
from premeditate.microworld.tasks import MicroTask, sample_tasks
from premeditate.microworld.verifier import ExactVerifier, require_scene
from premeditate.reasoners.base import Completion
from premeditate.rewards.base import Sample
from premeditate.rewards.checklist import ChecklistVerifier, read_answer
from premeditate.trace import Checklist, ChecklistItem

TASKS = list(sample_tasks(60, seed=3))


def judge(verifier: Any, *samples: Sample) -> list[Any]:
    return asyncio.run(verifier.verify(samples))


def sample(
    task: MicroTask, edit: Scene | Image.Image, checklist: Checklist | None = None, blind: bool = False
) -> Sample:
    made = to_task(task, MemoryStore())
    picture = render(edit) if isinstance(edit, Scene) else edit
    return Sample(strip(made) if blind else made, render(task.source), picture, checklist)


def test_the_exact_verifier_knows() -> None:
    exact = ExactVerifier()
    for task in TASKS[:20]:
        yes, no = judge(exact, sample(task, task.target), sample(task, task.source))
        assert yes.passed and yes.score == 1.0 and set(yes.scores) == {"follow", "keep", "quality"}
        assert no.status == "scored" and not no.passed and no.scores["follow"] < 1
        written = Checklist(items=task.checklist)
        assert judge(exact, sample(task, task.target, written, blind=True))[0].passed
        assert not exact.wants_checklist(to_task(task, MemoryStore()))
        assert exact.wants_checklist(strip(to_task(task, MemoryStore())))


def test_the_exact_verifier_says_what_it_cannot_judge() -> None:
    exact, task = ExactVerifier(), TASKS[0]
    odd = Checklist(items=(*task.checklist, ChecklistItem(question="is it lovely?", dimension="quality")))
    (verdict,) = judge(exact, sample(task, task.target, odd, blind=True))
    assert verdict.status == "unparsable" and not verdict.passed and verdict.score is None
    assert verdict.answers[-1].status == "unparsable" and verdict.answers[0].yes is True
    assert "quality" not in verdict.scores and verdict.scores["follow"] == 1
    for picture in (Image.new("RGB", (60, 64)), Image.effect_noise((64, 64), 90).convert("RGB")):
        (verdict,) = judge(exact, sample(task, picture))
        assert verdict.status == "unavailable" and verdict.reason.startswith("not a scene") and verdict.score is None
    assert judge(exact, sample(task, task.target, None, blind=True))[0].status == "unavailable"


def test_require_scene_says_how_to_use_real_models() -> None:
    require_scene(render(TASKS[0].source))
    with pytest.raises(ValueError, match=r"not a micro-world scene.*--editor and --reasoner at real models"):
        require_scene(Image.new("RGB", (640, 480), "white"))


ITEM = ChecklistItem(question="Is it?", dimension="keep")


@pytest.mark.parametrize(("completion", "status", "yes"), [
    (Completion(probabilities={"yes": 0.6, "no": 0.2}), "scored", True),
    (Completion(probabilities={"yes": 0.1, "no": 0.3}), "scored", False),
    (Completion(probabilities={"yes": 0.5, "no": 0.5}), "scored", False),
    (Completion(text="Yes."), "scored", True),
    (Completion(text="**No**, it is not."), "scored", False),
    (Completion(text="<think>yes?</think>no"), "scored", False),
    (Completion(text="<answer>yes</answer>"), "scored", True),
    (Completion(text="<think>yes yes"), "unparsable", None),
    (Completion(text="Yesterday"), "unparsable", None),
    (Completion(text=""), "unparsable", None),
    (Completion(text="It may be."), "unparsable", None),
    (Completion(text="I'm sorry, I can't help with that."), "refused", None),
    (Completion(error="timeout"), "unavailable", None),
    (Completion(probabilities={"yes": float("nan"), "no": 0.1}), "unparsable", None),
    (Completion(probabilities={"yes": 0.0, "no": 0.0}), "unparsable", None),
])  # fmt: skip
def test_an_answer_is_read_or_is_missing(completion: Completion, status: str, yes: bool | None) -> None:
    answer = read_answer(ITEM, completion)
    assert (answer.status, answer.yes) == (status, yes)
    assert (answer.p_yes is not None) == bool(completion.probabilities and status == "scored")


def test_items_of_one_sample_are_asked_side_by_side_in_one_batch() -> None:
    oracle = Oracle(TASKS)
    lists = [Checklist(items=t.checklist) for t in TASKS[:5]]
    verdicts = judge(ChecklistVerifier(oracle), *(sample(t, t.target, c) for t, c in zip(TASKS, lists, strict=False)))
    assert all(v.passed for v in verdicts) and len(oracle.batches) == 1
    groups = [request.images[1] for request in oracle.asked]
    assert len({id(g) for g in groups}) == 5 and [len(v.answers) for v in verdicts] == [len(c.items) for c in lists]
    assert judge(ChecklistVerifier(oracle), sample(TASKS[0], TASKS[0].target))[0].status == "unavailable"
    broken = Checklist(status="refused")
    assert judge(ChecklistVerifier(oracle), sample(TASKS[0], TASKS[0].target, broken))[0].status == "refused"
