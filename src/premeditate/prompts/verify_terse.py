"""The judge that reasons over principles, in terse words: for small models trained on exactly these.

    "judge MODE : INSTRUCTION | follow : Q ? Q ? keep : Q ? quality : Q ?"

think      "THOUGHT | 6.5"
verify     "yes no yes | 6.5"
both       "THOUGHT | yes no yes | 6.5"

The same functions as in `premeditate.prompts.verify`, which says what they do. The thought is plain words without a
bar; there is one yes or no per principle, in order, and a score from 0 to 10.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from premeditate.prompts.base import clean
from premeditate.prompts.terse import LIMIT
from premeditate.prompts.verify import MODES, TOP, Judged, Mode, check_mode
from premeditate.trace import ChecklistItem

_SCORE = re.compile(r"\s*([0-9]{1,2}(?:\.[0-9]{1,4})?)\s*")
_WORDS = {"yes": True, "no": False}


def judge(instruction: str, principles: Sequence[ChecklistItem], mode: Mode = "both") -> str:
    if not principles:
        raise ValueError("there are no principles to judge by; give at least one")
    # In their own order: the verdicts come back in it. A checklist's terse form sorts them.
    parts = [f"{dimension} : {' '.join(_question(item) for item in some)}"
             for dimension, some in groupby(principles, key=lambda item: item.dimension)]  # fmt: skip
    return f"judge {check_mode(mode)} : {instruction} | {' '.join(parts)}"


def tokens(count: int, mode: Mode = "both") -> int:
    return 8 + (0 if mode == "think" else 2 * count) + (0 if mode == "verify" else 64)


def answer(score: float, verdicts: Sequence[bool] = (), thought: str = "", mode: Mode = "both") -> str:
    if not 0 <= score <= TOP:
        raise ValueError(f"the score is {score}; give 0 to {TOP}")
    parts = [] if mode == "verify" else [_plain(thought)]
    if mode != "think":
        if not verdicts:
            raise ValueError("there are no verdicts; give one per principle")
        parts.append(" ".join("yes" if met else "no" for met in verdicts))
    return " | ".join([*parts, f"{score:.1f}".removesuffix(".0")])


def parse(text: str, count: int, mode: Mode = "both") -> Judged:
    text = clean(text)
    parts = text.split("|") if len(text) <= LIMIT else []
    if len(parts) != (3 if mode == "both" else 2):
        return Judged("unparsable", thought=text[:LIMIT])
    score = _SCORE.fullmatch(parts[-1])
    words = [] if mode == "think" else parts[-2].split()
    whole = mode == "think" or (count > 0 and len(words) == count and all(word in _WORDS for word in words))
    if score is None or float(score[1]) > TOP or not whole:
        return Judged("unparsable", thought=text)
    thought = "" if mode == "verify" else _plain(parts[0])
    evidence = tuple(thought or word for word in words)
    return Judged("scored", tuple(_WORDS[word] for word in words), float(score[1]), thought, evidence)


def _question(item: ChecklistItem) -> str:
    return item.question.rstrip("?").strip() + " ?"


def _plain(thought: str) -> str:
    return " ".join(clean(thought).replace("|", " ").split())


__all__ = ["MODES", "answer", "judge", "parse", "tokens"]
