"""The micro world proves itself: drawings decode, plans lead to targets, checklists mean what they say."""

import random

import numpy as np
import pytest
from PIL import Image, ImageFilter

from premeditate.microworld.checker import (
    Decoded,
    NotAScene,
    answer,
    decode,
    decode_arrays,
    is_exact,
    same_checklist,
)
from premeditate.microworld.families import FAMILIES, KINDS, TRAINED, UNSEEN
from premeditate.microworld.language import PlanError, execute, parse_plan, parse_step, to_text
from premeditate.microworld.render import render, render_codes
from premeditate.microworld.scene import CELLS, HELD_OUT, THINGS, Scene, Thing, random_scene
from premeditate.microworld.tasks import sample_task, sample_tasks


def seen(scene: Scene) -> Decoded:
    return decode(render(scene))


def test_every_drawing_decodes_to_its_scene() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):  # 100,000 scenes in all
        codes = rng.integers(0, len(THINGS), (1000, CELLS)) * (rng.random((1000, CELLS)) < rng.random((1000, 1)))
        found, sharp, distance = decode_arrays(render_codes(codes))
        assert (found == codes).all() and sharp.all() and distance.max() < 5e-3


def test_things_round_trip_through_codes() -> None:
    assert [t.code for t in THINGS if t] == list(range(1, 65))
    scene = random_scene(random.Random(1))
    assert Scene.from_codes(scene.codes) == scene


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f"{f.kind}-{f.name}")
def test_family(family) -> None:
    """Plan execution equals the target, the checklist is all-yes on the target only, and words read back."""
    instructions = set()
    for seed in range(200):
        split = "ood-family" if family.held_out else "test"
        task = sample_task(seed, split, family=family)
        assert execute(task.source, parse_plan(to_text(task.steps))) == task.target != task.source
        assert 1 <= len(task.steps) <= 3 and task.explanation
        instructions.add(task.instruction)
        target, source = seen(task.target), seen(task.source)
        assert all(answer(item.question, task.source, target) is True for item in task.checklist)
        assert not all(answer(item.question, task.source, source) for item in task.checklist)
        assert {item.dimension for item in task.checklist} == {"follow", "keep", "quality"}
        assert is_exact(task.target, target) and not is_exact(task.target, source)
    assert len(instructions) >= 2, "paraphrases"


def test_checklist_is_all_yes_on_the_target_alone() -> None:
    """Any other scene fails at least one item: the checklist and exact success are the same thing."""
    rng = random.Random(0)
    for task in sample_tasks(300):
        wrong = task.target.put(rng.randrange(CELLS), THINGS[rng.randrange(len(THINGS))])
        edit = seen(wrong)
        assert all(answer(i.question, task.source, edit) for i in task.checklist) == (wrong == task.target)


def test_splits_keep_apart() -> None:
    assert len(FAMILIES) >= 20 and {f.kind for f in TRAINED} == set(KINDS) and len(UNSEEN) >= 4
    names = {f.name for f in UNSEEN}
    train = [sample_task(i, "train") for i in range(3000)]
    test = [sample_task(i, "test") for i in range(3000)]
    for task in (*train, *test):
        assert task.family not in names and not task.source.held_out and not task.target.held_out
    shared = {(t.instruction, t.source) for t in train} & {(t.instruction, t.source) for t in test}
    assert len(shared) == 0
    ood = [sample_task(i, "ood") for i in range(400)]
    assert all((t.family in names) != (t.source.held_out or t.target.held_out) for t in ood)
    assert {t.family for t in ood} >= names


def test_tasks_are_exact_in_their_seed() -> None:
    assert list(sample_tasks(50, 3)) == list(sample_tasks(50, 3)) != list(sample_tasks(50, 4))
    with pytest.raises(ValueError, match="seed"):
        sample_task(-1)


def test_blur_noise_and_mixtures() -> None:
    """Noise of 5 % is read through; a blurred or mixed cell is not sharp."""
    rng = np.random.default_rng(0)
    scenes = [random_scene(random.Random(i)) for i in range(200)]
    pictures = render_codes(np.array([s.codes for s in scenes]))
    noisy = np.clip(pictures + rng.normal(0, 0.03 * 255, pictures.shape), 0, 255).astype(np.uint8)
    codes, sharp, _ = decode_arrays(noisy)
    assert [tuple(c) for c in codes] == [s.codes for s in scenes] and sharp.mean() > 0.99
    for scene in scenes[:50]:
        blurred = decode(render(scene).filter(ImageFilter.GaussianBlur(3)))
        full = [i for i, _ in scene.things()]
        assert not any(blurred.sharp[i] for i in full)
    one = Scene((Thing("circle", "red", "large"), *[None] * 15))
    two = Scene((Thing("square", "blue", "large"), *[None] * 15))
    assert not decode(Image.blend(render(one), render(two), 0.5)).sharp[0]


def test_not_a_scene() -> None:
    for image in (
        Image.new("RGB", (64, 64), "black"),
        Image.new("RGB", (100, 64)),
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)),
    ):
        with pytest.raises(NotAScene):
            decode(image)


def test_enlarged_scenes_decode() -> None:
    scene = random_scene(random.Random(5))
    assert decode(render(scene).resize((256, 256), Image.Resampling.NEAREST)).scene == scene


def test_steps_that_cannot_be_carried_out() -> None:
    scene = Scene((Thing("circle", "red", "large"), Thing("circle", "red", "small"), *[None] * 14))
    for text in ("paint c4 green", "add a small red circle at a1", "move a1 to b1", "remove the red circle",
                 "swap a1 and a1"):  # fmt: skip
        with pytest.raises(PlanError):
            parse_step(text).apply(scene)
    for text in ("", "paint", "paint a1 mauve", "make a1 green", "move a1 to e5", "remove a1 b1"):
        with pytest.raises(PlanError):
            parse_step(text)
    assert parse_step("Remove the small red circle.").apply(scene)[1] is None


def test_questions_the_checker_cannot_read() -> None:
    scene = random_scene(random.Random(2))
    for question in ("", "is it nice?", "is there a big red dog at b3?", "is e9 empty?"):
        assert answer(question, scene, seen(scene)) is None


def test_same_checklist_ignores_order_and_spelling() -> None:
    task = sample_task(0, "test")
    again = tuple(reversed(task.checklist))
    assert same_checklist(task.checklist, again) and not same_checklist(task.checklist, again[1:])


def test_held_out_pairs_are_all_drawable() -> None:
    for colour, shape in HELD_OUT:
        scene = Scene((Thing(shape, colour, "small"), *[None] * 15))
        assert seen(scene).scene == scene and scene.held_out
