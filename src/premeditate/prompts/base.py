"""A prompt set: for each of the four skills a template and its parser, side by side. No I/O here.

plan       [source]        instruction              -> explicit steps
checklist  [source]        instruction              -> yes/no items, each follow / keep / quality
answer     [source, edit]  question                 -> yes or no (as label probabilities)
critique   [source, edit]  instruction, last prompt -> what is wrong, scores 0-10, refined prompt

A parser never raises and never guesses: text that it cannot read becomes a record with status "unparsable" and the raw
text; a refusal becomes "refused".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from premeditate.trace import Checklist, Critique, Plan

LABELS = ("yes", "no")


def clean(text: str) -> str:
    """Model text as valid Unicode: lone surrogates, which JSON escapes can smuggle in, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


class PromptSet(Protocol):
    name: str
    max_tokens: int

    def plan(self, instruction: str) -> str: ...
    def parse_plan(self, text: str) -> Plan: ...
    def checklist(self, instruction: str) -> str: ...
    def parse_checklist(self, text: str) -> Checklist: ...
    def answer(self, question: str) -> str: ...
    def critique(self, instruction: str, last: Sequence[str]) -> str: ...
    def parse_critique(self, text: str) -> Critique: ...
