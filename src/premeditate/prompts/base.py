"""A prompt set: for each of the four skills a template and its parser, side by side. No I/O here.

plan       [source]        instruction              -> explicit steps
checklist  [source]        instruction              -> yes/no items, each follow / keep / quality
answer     [source, edit]  question                 -> yes or no (as label probabilities)
critique   [source, edit]  instruction, last prompt -> what is wrong, scores 0-10, refined prompt
           (with the earlier rounds where there are any; an expert critic *decides* and gives no scores)

A parser never raises and never guesses: text that it cannot read becomes a record with status "unparsable" and the raw
text; a refusal becomes "refused".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from premeditate.trace import Checklist, Critique, Plan

LABELS = ("yes", "no")
Rounds = Sequence[tuple[str, str]]
"""Earlier rounds, oldest first: the prompt and what was wrong with its result."""
# <|im_end|> and its like with a full-width bar; what the Gemma, Llama, Mistral, LLaVA and Idefics families use.
_CONTROL = re.compile(
    r"<[|\uff5c][^<>]{1,64}>|<[^<>]{1,64}[|\uff5c]>|\[/?(?:INST|IMG|SYSTEM_PROMPT|IMG_BREAK|IMG_END)\]"
    r"|</?(?:s|bos|eos|pad|unk|image|video|audio|(?:start|end)_of_(?:turn|image|audio|utterance)|image_soft_token"
    r"|fake_token_around_image|global-img|row_\d+_col_\d+)>",
    re.IGNORECASE,
)


def clean(text: str) -> str:
    """Model text as valid Unicode: lone surrogates, which JSON escapes can smuggle in, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def defuse(text: str) -> str:
    """Text whose control tokens are mere words, for models that parse them out of what users write (servers do)."""
    return _CONTROL.sub(lambda m: m[0].translate({60: "‹", 62: "›", 91: "⟦", 93: "⟧"}), text)


class PromptSet(Protocol):
    """`schemas`: the JSON schema of each skill's answer, for reasoners that can be held to one: "plan", "checklist",
    "critique", and "decide" for the critique of an expert. {} for a set that does not speak JSON."""

    name: str
    max_tokens: int
    schemas: Mapping[str, Mapping[str, Any]]

    def plan(self, instruction: str) -> str: ...
    def parse_plan(self, text: str) -> Plan: ...
    def checklist(self, instruction: str) -> str: ...
    def parse_checklist(self, text: str) -> Checklist: ...
    def answer(self, question: str) -> str: ...

    def critique(self, instruction: str, last: Sequence[str], *, history: Rounds = (), decides: bool = False) -> str:
        """`last`: the prompts that made the edit. `history`: the rounds before that one. `decides`: the critic says
        by itself whether the edit will do, without scores."""
        ...

    def parse_critique(self, text: str, *, decides: bool = False) -> Critique:
        """With `decides`, a critique without scores is whole too."""
        ...
