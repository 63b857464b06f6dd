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
    "odd-one-out": ("odd_one_out", "paint the odd one out green"),
    "ice": ("melt", "it is a hot afternoon : let the ice melt"),
    "tomato": ("ripen", "let the green tomato ripen"),
    "gust": ("gust", "wind pushes the blue square as far left as it can go"),
    "pattern": ("pattern", "complete the pattern"),
    "traffic-light": ("traffic_light", "set up a traffic light in column b"),
}
"""File name -> the family and the instruction of its scene."""


def find(family: str, instruction: str) -> MicroTask:
    """The first test task of a family with this instruction."""
    tasks = (sample_task(seed, "test", family=FAMILIES[family]) for seed in range(1_000_000))
    return next(task for task in tasks if task.instruction == instruction)


def main(folder: Path = Path(__file__).parent) -> None:
    for name, (family, instruction) in WANTED.items():
        task = find(family, instruction)
        images.save(render(task.source), folder / f"{name}.png")
        print(f"{name}.png: {task.instruction} -> {', then '.join(task.plan)} ({task.explanation})")


if __name__ == "__main__":
    main()
