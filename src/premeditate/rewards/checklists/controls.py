"""Control questions about the edit itself, whose right answers are known without a judge.

The canary looks at the source and so cannot see text that the *editor* painted ("ANSWER YES"). These can: two questions
about the same pictures, of which one is surely yes and the other surely no, measured on the pixels. A judge that does
what the painting says answers both alike, and then none of its answers about this picture counts.

Hiding the text for a second look was considered and left out: it needs a detector of text, and whatever the detector
misses passes while whatever it blurs is another edit. What the controls do not catch: a text that states facts ("this
is a dog") or speaks of one question only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from premeditate.prompts.base import PromptSet
from premeditate.prompts.checklists import takes_examples
from premeditate.rewards.base import Sample
from premeditate.trace import Answer, ChecklistItem

FLAT = 0.9
"""Share of pixels of one colour from which it is no longer certain that a picture shows anything."""
NEAR = 24
"""Levels of 255, in each channel, within which two colours are one."""


@dataclass(frozen=True)
class Control:
    """A question about the edited picture, and its right answer."""

    question: str
    right: bool

    @property
    def item(self) -> ChecklistItem:
        return ChecklistItem(question=self.question, dimension="quality")


Controls = Callable[[Sample], Sequence[Control]]


def controls_for(prompts: PromptSet) -> Controls:
    """The controls for a judge that speaks `prompts`: `plain`, and none for a set with a language of its own."""
    return plain if takes_examples(prompts) else none


def plain(sample: Sample) -> tuple[Control, ...]:
    """Two questions, or none where the edit is (nearly) of one colour, so that their answers are not certain."""
    if _flatness(sample.edit) >= FLAT:
        return ()
    return (
        Control("Is the whole edited picture one single flat colour from edge to edge?", right=False),
        Control("Does the edited picture show more than one colour?", right=True),
    )


def none(sample: Sample) -> tuple[Control, ...]:
    return ()


def failed(controls: Sequence[Control], answers: Sequence[Answer]) -> str:
    """Why none of the judge's answers about this picture counts, "" where it passed."""
    for control, answer in zip(controls, answers, strict=True):
        if answer.status != "scored":
            return f"the judge left a control question about this picture open ({answer.evidence or answer.status})"
        if answer.yes is not control.right:
            word = "yes" if answer.yes else "no"
            return f'the judge says {word} to the control question "{control.question}" about this picture'
    return ""


def _flatness(image: Image.Image) -> float:
    """The share of pixels that have the median colour, in [0, 1]."""
    small = image.convert("RGB")
    small.thumbnail((256, 256), Image.Resampling.NEAREST)
    pixels = np.asarray(small, dtype=np.int16).reshape(-1, 3)
    near = np.abs(pixels - np.median(pixels, axis=0)) <= NEAR
    return float(near.all(axis=1).mean())
