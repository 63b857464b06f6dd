"""The judge that reasons over principles, in terse words: for small models trained on exactly these.

    "judge MODE : INSTRUCTION | 1 follow : Q ? 2 follow : Q ? 3 keep : Q ? 4 quality : Q ?"

think      "THOUGHT | 6.5"
verify     "1 Q ?\\nyes\\n2 Q ?\\nno\\n3 Q ?\\nyes\\n4 Q ?\\nyes | 6.5"
both       "THOUGHT | 1 Q ?\\nyes\\n2 Q ?\\nno\\n3 Q ?\\nyes\\n4 Q ?\\nyes | 6.5"

The same functions as in `premeditate.prompts.verify`, which says what they do. The thought is plain words without a
bar; there is one yes or no per principle behind its number, in order, and a score from 0 to 10. A verdict may repeat
its question first, and is taught so: a small model answers best right behind a question, on a line of its own as the
*answer* skill has it, and loses count without the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from premeditate.prompts.base import clean
from premeditate.prompts.terse import LIMIT
from premeditate.prompts.verify import MODES, TOP, Judged, Mode, check_mode
from premeditate.trace import ChecklistItem

_SCORE = re.compile(r"\s*([0-9]{1,2}(?:\.[0-9]{1,4})?)\s*")
# A number, perhaps the question, the verdict.
_VERDICT = re.compile(r"\s*([0-9]{1,3})((?: [^?|]{1,400} \?)?)\s+(yes|no)(?=\s|$)")


def judge(instruction: str, principles: Sequence[ChecklistItem], mode: Mode = "both") -> str:
    if not principles:
        raise ValueError("there are no principles to judge by; give at least one")
    asked = (f"{i} {item.dimension} : {_question(item)}" for i, item in enumerate(principles, 1))
    return f"judge {check_mode(mode)} : {instruction} | {' '.join(asked)}"


def tokens(count: int, mode: Mode = "both") -> int:
    return 8 + (0 if mode == "think" else 32 * count) + (0 if mode == "verify" else 64)


def answer(
    score: float, verdicts: Sequence[bool] = (), thought: str = "", mode: Mode = "both",
    principles: Sequence[ChecklistItem] = (),
) -> str:  # fmt: skip
    if not 0 <= score <= TOP:
        raise ValueError(f"the score is {score}; give 0 to {TOP}")
    parts = [] if mode == "verify" else [_plain(thought)]
    if mode != "think":
        if not verdicts:
            raise ValueError("there are no verdicts; give one per principle")
        asked = [f" {_question(item)}" for item in principles] or [""] * len(verdicts)
        said = zip(asked, verdicts, strict=True)
        parts.append("\n".join(f"{i}{words}\n{'yes' if met else 'no'}" for i, (words, met) in enumerate(said, 1)))
    return " | ".join([*parts, f"{score:.1f}".removesuffix(".0")])


def parse(text: str, count: int, mode: Mode = "both") -> Judged:
    text = clean(text)
    parts = text.split("|") if len(text) <= LIMIT else []
    if len(parts) != (3 if mode == "both" else 2):
        return Judged("unparsable", thought=text[:LIMIT])
    score = _SCORE.fullmatch(parts[-1])
    said = [] if mode == "think" else _verdicts(parts[-2])
    whole = mode == "think" or ([int(m[1]) for m in said] == list(range(1, count + 1)) and count > 0)
    if score is None or float(score[1]) > TOP or not whole:
        return Judged("unparsable", thought=text)
    thought = "" if mode == "verify" else _plain(parts[0])
    evidence = tuple(thought or f"{m[2].strip()} {m[3]}".strip() for m in said)
    return Judged("scored", tuple(m[3] == "yes" for m in said), float(score[1]), thought, evidence)


def _verdicts(part: str) -> list[re.Match[str]]:
    """All of `part`, or nothing."""
    found, at = list[re.Match[str]](), 0
    while part[at:].strip():
        match = _VERDICT.match(part, at)
        if match is None:
            return []
        found.append(match)
        at = match.end()
    return found


def _question(item: ChecklistItem) -> str:
    return _plain(item.question.replace("?", " ")) + " ?"


def _plain(thought: str) -> str:
    return " ".join(clean(thought).replace("|", " ").split())


__all__ = ["MODES", "answer", "judge", "parse", "tokens"]
