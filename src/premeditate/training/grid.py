"""Pictures of what a policy makes: one row per task, source | edit | scores, with as many edits as there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from premeditate.errors import printable

SMALLEST, LARGEST = 160, 256
"""Pixels: a picture's longest side is enlarged or reduced into these."""
TEXT = 14
_LINE, _GAP, _COLUMN, _PROMPT_LINES, _VERDICT_LINES = 18, 12, 190, 3, 4
_PAPER, _INK, _GREY, _RULE = (252, 252, 250), (25, 25, 25), (125, 125, 125), (215, 215, 210)
_CAPTION = "the source, then each edit with its scores"


@dataclass(frozen=True)
class Edit:
    """`scores` by name; None or NaN: missing, shown as "-". `verdict`: words about it."""

    image: Image.Image
    scores: Mapping[str, float | None] = field(default_factory=dict)
    verdict: str = ""


@dataclass(frozen=True)
class Row:
    source: Image.Image
    prompt: str
    edits: Sequence[Edit]


def draw(rows: Sequence[Row]) -> Image.Image:
    """The rows below each other, RGB. Small pictures are enlarged without smoothing: what they hold is pixels."""
    if not rows:
        raise ValueError("there is nothing to show; give at least one row")
    parts = [_row(row) for row in rows]
    width = max(part.width for part in parts)
    page = Image.new("RGB", (width, 2 * _GAP + _LINE + sum(part.height for part in parts)), _PAPER)
    pen, top = ImageDraw.Draw(page), 2 * _GAP + _LINE
    pen.text((_GAP, _GAP), wrap(_CAPTION, width - 2 * _GAP, 1)[0], fill=_GREY, font=_font())
    for part in parts:
        page.paste(part, (0, top))
        pen.line([(_GAP, top), (width - _GAP, top)], fill=_RULE)
        top += part.height
    return page


def fitted(image: Image.Image) -> Image.Image:
    """`image` in RGB with its longest side in SMALLEST-LARGEST pixels, enlarged by whole numbers."""
    image, longest = image.convert("RGB"), max(image.size)
    if longest < SMALLEST:
        factor = math.ceil(SMALLEST / longest)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if longest > LARGEST:
        size = (max(1, round(side * LARGEST / longest)) for side in image.size)
        return image.resize(tuple(size), Image.Resampling.LANCZOS)  # type: ignore[arg-type]
    return image


def wrap(text: str, width: int, lines: int) -> list[str]:
    """`text` in at most `lines` lines of `width` pixels; what does not fit ends in an ellipsis."""
    font, done, line = _font(), list[str](), ""
    for word in printable(" ".join(text.split())).split(" "):
        while font.getlength(word) > width:  # a word that is too long is cut
            cut = next(n for n in range(len(word), 0, -1) if font.getlength(word[:n]) <= width or n == 1)
            done += [line, word[:cut]] if line else [word[:cut]]
            line, word = "", word[cut:]
        longer = f"{line} {word}".strip()
        if font.getlength(longer) <= width:
            line = longer
        else:
            done.append(line)
            line = word
    done += [line] if line else []
    if len(done) <= lines:
        return done
    last = done[lines - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*done[: lines - 1], last + "…"]


@cache
def _font() -> Any:
    try:
        return ImageFont.truetype("DejaVuSans.ttf", TEXT)  # knows more letters, where the system has it
    except OSError:
        return ImageFont.load_default(TEXT)


def _row(row: Row) -> Image.Image:
    source, edits = fitted(row.source), [fitted(edit.image) for edit in row.edits]
    width = _GAP + source.width + _GAP + sum(edit.width + _COLUMN + 2 * _GAP for edit in edits)
    prompt = wrap(row.prompt, width - 2 * _GAP, _PROMPT_LINES)
    verdicts = [wrap(edit.verdict, _COLUMN, _VERDICT_LINES) if edit.verdict else [] for edit in row.edits]
    texts = (_LINE * (len(e.scores) + len(v)) for e, v in zip(row.edits, verdicts, strict=True))
    top = _GAP + _LINE * len(prompt) + _GAP // 2
    page = Image.new("RGB", (width, top + max(source.height, *(e.height for e in edits), *texts, 0) + _GAP), _PAPER)
    pen, left = ImageDraw.Draw(page), _GAP
    for i, line in enumerate(prompt):
        pen.text((left, _GAP + i * _LINE), line, fill=_INK, font=_font())
    page.paste(source, (left, top))
    left += source.width + _GAP
    for edit, picture, verdict in zip(row.edits, edits, verdicts, strict=True):
        page.paste(picture, (left, top))
        left += picture.width + _GAP
        _scores(pen, edit.scores, verdict, left, top)
        left += _COLUMN + _GAP
    return page


def _scores(pen: ImageDraw.ImageDraw, scores: Mapping[str, float | None], verdict: list[str], x: int, y: int) -> None:
    for name, value in scores.items():
        missing = value is None or math.isnan(value)
        said = "-" if missing else f"{value:.2f}"
        room = _COLUMN - int(_font().getlength(said)) - 8
        colour = _GREY if missing else _INK
        pen.text((x, y), wrap(name, room, 1)[0], fill=colour, font=_font())
        pen.text((x + _COLUMN, y), said, fill=colour, font=_font(), anchor="ra")
        y += _LINE
    for line in verdict:
        pen.text((x, y), line, fill=_GREY, font=_font())
        y += _LINE
