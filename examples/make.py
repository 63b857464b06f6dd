"""Draws the pictures of this folder: held-out scenes of the micro world, which no model was trained on.

python examples/make.py
"""

from __future__ import annotations

from pathlib import Path

from premeditate import images
from premeditate.microworld.families import TRAINED
from premeditate.microworld.render import render
from premeditate.microworld.tasks import MicroTask, sample_task

FAMILIES = {family.name: family for family in TRAINED}
WANTED = {
    "odd-one-out": ("odd_one_out", "paint the odd one out green", 803),
    "ice": ("melt", "it is a hot afternoon : let the ice melt", 0),
    "tomato": ("ripen", "let the green tomato ripen", 0),
    "gust": ("gust", "wind pushes the blue square as far left as it can go", 0),
    "pattern": ("pattern", "complete the pattern", 0),
    "traffic-light": ("traffic_light", "set up a traffic light in column b", 0),
}
"""File name -> the family, the instruction, and the test seed from which on its scene is looked for."""


def find(family: str, instruction: str, first: int) -> MicroTask:
    """The first test task of a family with this instruction, from a seed on."""
    tasks = (sample_task(seed, "test", family=FAMILIES[family]) for seed in range(first, 1_000_000))
    return next(task for task in tasks if task.instruction == instruction)


def main(folder: Path = Path(__file__).parent) -> None:
    for name, (family, instruction, first) in WANTED.items():
        task = find(family, instruction, first)
        images.save(render(task.source), folder / f"{name}.png")
        print(f"{name}.png: {task.instruction} -> {', then '.join(task.plan)} ({task.explanation})")


if __name__ == "__main__":
    main()
