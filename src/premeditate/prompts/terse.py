"""The terse prompt set: one line in, one line out. For small models trained on exactly these words.

plan       "plan : INSTRUCTION"                        -> "STEP then STEP"
checklist  "checklist : INSTRUCTION"                   -> "follow : Q ? Q ? keep : Q ? quality : Q ?"
answer     "answer : QUESTION"                         -> "yes" | "no"
critique   "critique : INSTRUCTION | prompt : LAST"    -> "PROBLEM | semantic 3 | quality 10 | prompt : STEP then STEP"
           where PROBLEM is "good" or says what is wrong, and "last : " instead of "prompt : " edits the last result.

Its models were trained on one round at a time and always score: they are shown no history, and a critic that decides
says the same words as any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from premeditate.prompts.base import Rounds, clean
from premeditate.trace import Checklist, ChecklistItem, Critique, Plan

JOIN = " then "
GOOD = "good"
LIMIT = 4_000
"""Characters; a longer text is no terse answer, and hostile ones would be slow to read."""
_THEN = re.compile(r"\s*(?:\bthen\b|;|\n)\s*")
_SECTION = re.compile(r"\b(follow|keep|quality)\s*:")
_STEP = re.compile(r"(?=.*[^\W\d_])[^|:]{1,400}")
"""A step is any words, but no fragment of another skill's answer."""
_CRITIQUE = re.compile(
    r"\s*(?P<problem>[^|]{1,400}?)\s*\|\s*semantic (?P<semantic>10|[0-9])\s*\|\s*quality (?P<quality>10|[0-9])\s*"
    r"\|\s*(?P<base>prompt|last)\s*:\s*(?P<prompt>[^|]{1,2000}?)\s*",
    re.DOTALL,
)


def split_steps(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in _THEN.split(text.strip().rstrip(".")) if part.strip())


class Terse:
    name = "terse"
    max_tokens = 96
    schemas: Mapping[str, Mapping[str, Any]] = {}

    def plan(self, instruction: str) -> str:
        return f"plan : {instruction}"

    def parse_plan(self, text: str) -> Plan:
        text = clean(text)
        steps = split_steps(text) if len(text) <= LIMIT else ()
        if not steps or not all(_STEP.fullmatch(step) for step in steps):
            return Plan(status="unparsable", raw=text)
        return Plan(steps=steps, raw=text)

    def write_plan(self, steps: Sequence[str]) -> str:
        """What a model is trained to say."""
        return JOIN.join(steps)

    def checklist(self, instruction: str) -> str:
        return f"checklist : {instruction}"

    def parse_checklist(self, text: str) -> Checklist:
        text = clean(text)
        parts = _SECTION.split(text if len(text) <= LIMIT else "")
        items = [
            ChecklistItem(question=" ".join(question.split()) + "?", dimension=dimension)  # type: ignore[arg-type]
            for dimension, body in zip(parts[1::2], parts[2::2], strict=True)
            for question in body.split("?")[:-1]
            if question.strip()
        ]
        complete = bool(items) and not parts[0].strip() and all(b.rstrip().endswith("?") for b in parts[2::2])
        return Checklist(
            status="scored" if complete else "unparsable", items=tuple(items) if complete else (), raw=text
        )

    def write_checklist(self, items: Sequence[ChecklistItem]) -> str:
        out = []
        for dimension in ("follow", "keep", "quality"):
            questions = [item.question.rstrip("?").strip() + " ?" for item in items if item.dimension == dimension]
            if questions:
                out.append(f"{dimension} : {' '.join(questions)}")
        return " ".join(out)

    def answer(self, question: str) -> str:
        return f"answer : {question.rstrip('?').strip()} ?"

    def critique(self, instruction: str, last: Sequence[str], *, history: Rounds = (), decides: bool = False) -> str:
        return f"critique : {instruction} | prompt : {JOIN.join(last)}"

    def parse_critique(self, text: str, *, decides: bool = False) -> Critique:
        text = clean(text)
        found = _CRITIQUE.fullmatch(" ".join(text.split())) if len(text) <= LIMIT else None
        prompt = split_steps(found["prompt"]) if found else ()
        if not found or not prompt:
            return Critique(status="unparsable", raw=text)
        return Critique(
            status="scored",
            satisfied=found["problem"].strip().lower() == GOOD,
            problem="" if found["problem"].strip().lower() == GOOD else found["problem"].strip(),
            semantic=float(found["semantic"]),
            quality=float(found["quality"]),
            prompt=prompt,
            base="last" if found["base"] == "last" else "original",
            raw=text,
        )

    def write_critique(self, problem: str, semantic: int, quality: int, prompt: Sequence[str], base: str) -> str:
        word = "last" if base == "last" else "prompt"
        return f"{problem or GOOD} | semantic {semantic} | quality {quality} | {word} : {JOIN.join(prompt)}"
