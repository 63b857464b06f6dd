"""Writes docs/microworld.md and docs/images/families.png: every family with an example."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from premeditate.microworld.families import FAMILIES, KINDS
from premeditate.microworld.render import contact_sheet, render
from premeditate.microworld.tasks import sample_task

DOCS = Path(__file__).parent
HEAD = """# The micro world

Scenes are 64x64 pixels on a 4x4 grid. A cell is empty or holds one thing: a shape (circle, square, triangle, star), a
colour (red, orange, yellow, green, cyan, blue, purple, gray) and a size (small, large). Cells are named like a
spreadsheet's, column letter and row number from the top left: `b3`. The pale gradient behind the things is the same in
every scene, so that each cell's pixels also say where it is.

An explicit edit is a sentence of one of eight forms (`premeditate/microworld/language.py`); a plan is up to three of
them joined by "then". A reasoning instruction has to be worked out first. Things stand for what they look like: ice is
a cyan square, water a blue circle, a tomato a circle (green, then red), a leaf a green star, a tree a green triangle, a
candle an orange square, iron a gray square, the sun a yellow circle, fire a red triangle, a balloon a purple circle.

The exact checker (`checker.py`) reads any picture back into a scene by nearest drawing, with a margin: a blurred or
mixed cell is not *sharp* and fails the quality item. Success is the whole true checklist, which is the same as every
cell being right and sharp.

Splits: *train* and *test* draw the same families from disjoint seeds; *ood* is half held-out families (marked below),
half known families in scenes with a held-out (colour, shape) pair: purple star, cyan triangle, yellow square, gray
triangle. No training task of any model but the VAE contains one of these.

![One example of each reasoning family: source left, target right](images/families.png)

| kind | family | example | plan |
|---|---|---|---|
"""


def main() -> None:
    lines, pairs = [], []
    for kind in KINDS:
        for family in (f for f in FAMILIES if f.kind == kind):
            task = sample_task(7, "ood-family" if family.held_out else "test", family=family)
            mark = " (held out)" if family.held_out else ""
            lines.append(f"| {kind} | {family.name}{mark} | {task.instruction} | {'; '.join(task.plan)} |")
            if kind != "explicit":
                pairs.append([render(task.source), render(task.target)])
    (DOCS / "microworld.md").write_text(HEAD + "\n".join(lines) + "\n")
    rows = [[image for pair in pairs[i : i + 6] for image in pair] for i in range(0, len(pairs), 6)]
    contact_sheet(rows, scale=1).convert("P", palette=Image.Palette.ADAPTIVE).save(DOCS / "images" / "families.png")


if __name__ == "__main__":
    main()
