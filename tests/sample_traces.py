"""A hand-made run for the tests of the viewer: real scenes, made-up words."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from PIL import Image

from premeditate.microworld.checker import answer, checklist, decode
from premeditate.microworld.language import execute, parse_plan
from premeditate.microworld.render import render
from premeditate.microworld.scene import Scene, Thing
from premeditate.trace import (
    Answer,
    Chain,
    Checklist,
    Critique,
    Edit,
    ImageRef,
    Plan,
    Round,
    Selection,
    Task,
    Trace,
    Verdict,
)

INSTRUCTION = "paint the odd one out green"
PLAN = "paint the red star at b3 green"


class Memory:
    """Images by reference and traces by id, like a store."""

    def __init__(self) -> None:
        self.images: dict[str, Image.Image] = {}
        self.all: dict[str, Trace] = {}

    def put_image(self, image: Image.Image) -> ImageRef:
        name = hashlib.sha256(image.tobytes()).hexdigest()
        self.images[name] = image
        return ImageRef(sha256=name, width=image.width, height=image.height)

    def get_image(self, ref: ImageRef) -> Image.Image:
        if ref.sha256 not in self.images:
            raise ValueError(f"image {ref.sha256[:12]} is missing")
        return self.images[ref.sha256]

    def traces(self) -> list[str]:
        return list(self.all)

    def trace(self, trace_id: str) -> Trace:
        return self.all[trace_id]


def odd_scene() -> Scene:
    cells: list[Thing | None] = [None] * 16
    for index, colour, size in (
        (1, "blue", "large"),
        (4, "orange", "small"),
        (7, "blue", "small"),
        (14, "cyan", "large"),
    ):
        cells[index] = Thing("circle", colour, size)
    cells[9] = Thing("star", "red", "large")
    return Scene(tuple(cells))


def judged(source: Scene, target: Scene, image: Image.Image, seed: int) -> Verdict:
    rng, decoded = random.Random(seed), decode(image)
    answers = []
    for item in checklist(source, target):
        yes = bool(answer(item.question, source, decoded))
        p = 1 - 0.06 * rng.random() if yes else 0.2 * rng.random()
        answers.append(Answer(item=item, status="scored", yes=yes, p_yes=p))
    scores = {a.item.dimension: float(a.p_yes or 0) for a in answers}
    return Verdict(status="scored", answers=tuple(answers), scores=scores, verifier="checklist", seconds=0.031)


def sample(
    memory: Memory,
    chains: Sequence[Sequence[str]] = ((("remove the red star at b3"), PLAN),),
    trace_id: str = "20261121-020000-odd",
    instruction: str = INSTRUCTION,
    scale: int = 1,
    stepwise: bool = False,
) -> Trace:
    """A finished trace: each chain carries out its texts, a round each, and is judged by the exact answers."""
    source = odd_scene()
    target = execute(source, parse_plan(PLAN))

    def store(scene: Scene) -> ImageRef:
        image = render(scene)
        return memory.put_image(image.resize((64 * scale, 64 * scale), Image.Resampling.NEAREST))

    start = store(source)
    built, selection = [], None
    for c, texts in enumerate(chains):
        rounds = []
        for r, text in enumerate(texts):
            scene, edits = source, []
            for part in text.split(" then ") if stepwise else (text,):
                scene = execute(scene, parse_plan(part))
                edits.append(
                    Edit(
                        prompt=part,
                        base="original" if not edits else "last",
                        source=start,
                        image=store(scene),
                        seed=7 + r,
                        editor="premeditate/micro-editor",
                        seconds=0.412,
                    )
                )
            verdict = judged(source, target, render(scene), 10 * c + r)
            critique = Critique(
                status="scored",
                satisfied=verdict.passed,
                semantic=10 if verdict.passed else 2,
                quality=9,
                problem="" if verdict.passed else "b3 is wrong : there must be a large green star",
                prompt=(PLAN,),
                author="premeditate/micro-reasoner",
                seconds=0.09,
            )
            rounds.append(Round(edits=tuple(edits), verdict=verdict, critique=critique))
            if verdict.passed and selection is None:
                selection = Selection(chain=c, round=r, verified=True, reason="the only round that passed every check")
        plan = Plan(
            steps=tuple(texts[0].split(" then ")),
            explanation="all the others are circles",
            raw=texts[0],
            author="premeditate/micro-reasoner",
            seconds=0.12,
        )
        built.append(
            Chain(plan=plan, rounds=tuple(rounds), stopped="verified" if rounds[-1].verdict.passed else "round limit")
        )
    selection = selection or Selection(
        chain=0, round=0, verified=False, reason="no round passed every check; this one has the highest mean p(yes)"
    )
    trace = Trace(
        id=trace_id,
        task=Task(id="odd-one-out", images=(start,), instruction=instruction),
        settings={
            "strategy": "think-while-edit",
            "max_rounds": 4,
            "chains": len(built),
            "editor": "micro",
            "reasoner": "micro",
            "verifier": "reasoner",
            "seed": 7,
        },
        versions={"premeditate": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1", "transformers": "5.23.0"},
        started="2026-11-21T02:00:00+00:00",
        checklist=Checklist(items=checklist(source, target), author="premeditate/micro-reasoner", seconds=0.11),
        chains=tuple(built),
        selection=selection,
        finished=True,
        seconds=1.84,
        calls={"editor": sum(len(r.edits) for c in built for r in c.rounds), "reasoner": 12},
    )
    memory.all[trace_id] = trace
    return trace
