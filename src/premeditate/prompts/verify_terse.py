"""The judge that reasons over principles, in terse words: for small models trained on exactly these.

    "judge MODE : INSTRUCTION | 1 follow : Q ? 2 follow : Q ? 3 keep : Q ? 4 quality : Q ?"

think      "THOUGHT | 6.5"
verify     "1 Q ?\\nyes\\n2 Q ?\\nno\\n3 Q ?\\nyes\\n4 Q ?\\nyes | 6.5"
both       "THOUGHT | 1 Q ?\\nyes\\n2 Q ?\\nno\\n3 Q ?\\nyes\\n4 Q ?\\nyes | 6.5"

The same functions as in `premeditate.prompts.verify`, which says what they do. The thought is plain words without a
bar, and never empty; there is one yes or no per principle, in order, and a score from 0 to 10. Without the numbers a
small model loses count; right behind the question, on a line of its own, a verdict stands as the *answer* skill has it.
The reader takes the number for the principle, and does not ask whether the question was repeated well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from premeditate.prompts.base import clean
from premeditate.prompts.terse import LIMIT
from premeditate.prompts.verify import MODES, TOP, Judged, Mode, check_mode, lacks_thought
from premeditate.trace import ChecklistItem

_HEAD = re.compile(r"([0-9]{1,3})(?: .*)?")
_SCORE = re.compile(r"\s*([0-9]{1,2}(?:\.[0-9]{1,4})?)\s*")
_WORDS = {"yes": True, "no": False}


def judge(instruction: str, principles: Sequence[ChecklistItem], mode: Mode = "both") -> str:
    if not principles:
        raise ValueError("there are no principles to judge by; give at least one")
    asked = (f"{i} {item.dimension} : {_question(item)}" for i, item in enumerate(principles, 1))
    return f"judge {check_mode(mode)} : {_plain(instruction)} | {' '.join(asked)}"


def tokens(count: int, mode: Mode = "both") -> int:
    return 8 + (0 if mode == "think" else 24 * count) + (0 if mode == "verify" else 64)


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
        if len(principles) != len(verdicts):
            raise ValueError(f"there are {len(verdicts)} verdicts about {len(principles)} principles; give one each")
        told = enumerate(zip(principles, verdicts, strict=True), 1)
        parts.append("\n".join(f"{i} {_question(item)}\n{'yes' if met else 'no'}" for i, (item, met) in told))
    return " | ".join([*parts, f"{score:.1f}".removesuffix(".0")])


def parse(text: str, count: int, mode: Mode = "both") -> Judged:
    text = clean(text)
    parts = text.split("|") if len(text) <= LIMIT else []
    if len(parts) != (3 if mode == "both" else 2):
        return Judged("unparsable", thought=text[:LIMIT])
    score = _SCORE.fullmatch(parts[-1])
    said = [] if mode == "think" else [line.strip() for line in parts[-2].strip().split("\n")]
    heads, words = [_HEAD.fullmatch(line) for line in said[::2]], said[1::2]
    listed = len(words) == count > 0 and [head and head[1] for head in heads] == [str(i) for i in range(1, count + 1)]
    whole = mode == "think" or (listed and all(word in _WORDS for word in words))
    thought = "" if mode == "verify" else _plain(parts[0])
    if score is None or float(score[1]) > TOP or not whole or lacks_thought(thought, mode):
        return Judged("unparsable", thought=text)
    evidence = tuple(thought or word for word in words)
    return Judged("scored", tuple(_WORDS[word] for word in words), float(score[1]), thought, evidence)


def _question(item: ChecklistItem) -> str:
    return _plain(item.question.replace("?", " ")) + " ?"


def _plain(thought: str) -> str:
    return " ".join(clean(thought).replace("|", " ").split())


__all__ = ["MODES", "answer", "judge", "parse", "tokens"]
