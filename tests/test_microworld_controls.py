"""The micro world's control questions: always right by the exact checker, and failed by a judge that obeys."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest
from PIL import Image, ImageFilter

from premeditate.microworld.checker import answer, decode
from premeditate.microworld.controls import micro_controls
from premeditate.microworld.pairs import DAMAGES, damaged
from premeditate.microworld.render import render
from premeditate.microworld.scene import Scene
from premeditate.microworld.tasks import sample_task
from premeditate.reasoners.base import ChatRequest
from premeditate.reasoners.callable import CallableReasoner
from premeditate.rewards.base import Sample
from premeditate.rewards.checklist import ChecklistVerifier
from premeditate.trace import Checklist, Task


def sample(seed: int, edit: Image.Image | None = None, scale: int = 1) -> Sample:
    task, rng = sample_task(seed, "test"), random.Random(seed)
    made = edit or damaged(task, DAMAGES[seed % len(DAMAGES)], rng) or render(task.target)
    size = (64 * scale, 64 * scale)
    source, made = (im.resize(size, Image.Resampling.NEAREST) for im in (render(task.source), made))
    about = Task(id=task.id, images=(), instruction=task.instruction)
    return Sample(about, source, made, Checklist(items=task.checklist))


def exact(question: str, source: Image.Image, edit: Image.Image) -> bool:
    found = answer(question, decode(source).scene, decode(edit))
    assert found is not None, question
    return found


@pytest.mark.parametrize("scale", [1, 3])
def test_the_exact_checker_gives_the_right_answers_one_of_each(scale: int) -> None:
    for seed in range(60):
        made = sample(seed, scale=scale)
        controls = micro_controls(made)
        assert [c.right for c in controls] == [True, False] and controls == micro_controls(made)
        assert [exact(c.question, made.source, made.edit) for c in controls] == [True, False]


def test_nobody_is_asked_about_cells_that_were_painted_over() -> None:
    for seed in range(20):
        pixels = np.array(render(sample_task(seed, "test").target))
        pixels[:40] = np.random.default_rng(seed).integers(0, 255, (40, 64, 3))
        made = sample(seed, Image.fromarray(pixels.astype(np.uint8)))
        asked = " ".join(c.question for c in micro_controls(made))
        assert asked and not any(f"{column}{row}" in asked for column in "abcd" for row in (1, 2))


def test_pictures_without_things_or_without_sharp_cells_are_asked_about_too() -> None:
    empty = micro_controls(sample(0, render(Scene((None,) * 16))))
    assert "empty" in empty[0].question and [c.right for c in empty] == [True, False]
    wrecked = micro_controls(sample(0, Image.effect_noise((64, 64), 90).convert("RGB")))
    assert [(c.question, c.right) for c in wrecked] == [("is every shape sharp?", False)]
    blurred = render(sample_task(3, "test").target).filter(ImageFilter.GaussianBlur(1))
    assert all(exact(c.question, sample(3).source, blurred) is c.right for c in micro_controls(sample(3, blurred)))
    other = Sample(Task(id="x", images=(), instruction="x"), sample(0).source, Image.new("RGB", (30, 20)))
    assert micro_controls(other) == ()


@pytest.mark.parametrize("obeyed", ["yes", "no"])
def test_a_judge_that_obeys_the_picture_gives_no_scores_and_an_honest_one_is_unharmed(obeyed: str) -> None:
    samples = [sample(seed) for seed in range(12)]
    painted = {id(s.edit) for s in samples[::2]}

    def judge(request: ChatRequest) -> str:
        source, edit = request.images
        if id(edit) in painted:
            return obeyed
        return "yes" if exact(request.text.removeprefix("answer : "), source, edit) else "no"

    reasoner = CallableReasoner(judge, prompts="terse")
    plain = asyncio.run(ChecklistVerifier(reasoner).verify(samples))
    guarded = asyncio.run(ChecklistVerifier(reasoner, canary=True, controls=micro_controls).verify(samples))
    for at, (before, after) in enumerate(zip(plain, guarded, strict=True)):
        if at % 2 == 0:
            assert before.passed is (obeyed == "yes") and after.status == "unavailable" and after.scores == {}
            assert "control question" in after.reason
        else:
            assert (after.passed, after.scores) == (before.passed, before.scores)
