"""Which label an answer in words gives: the word that it begins with, or what it puts between <answer> tags.

A text in which two labels stand as verdicts gives none: nothing is guessed. A label stands as a verdict where the text
or a mark follows it ("No.", "no, wait", "Yes/No") or a clause of its own does ("no it is not"). Else "no" belongs to
the words behind it: "Yes, no other object changed" is a yes, and "No hat is there" or "No doubt it is green" is no
verdict at all, because only its reader could tell which one it means. No I/O here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from premeditate.prompts.general import spoken

_TAG = re.compile(r"<answer>(.*?)(?:</answer>|(?=<answer>)|\Z)", re.IGNORECASE | re.DOTALL)
_DRESSING = r"[ \t\r*_`~\"'”’)\]}]*"
_CLAUSE = "a|an|and|as|because|but|he|i|in|it|its|not|only|or|she|since|that|the|there|these|they|this|those|we|you"
_VERDICT = re.compile(rf"{_DRESSING}(?:\Z|\n|[^\w\s-]|-(?!\w)|(?:{_CLAUSE})\b)", re.IGNORECASE)
_NEAR = r"(?:[^\w,.;:!?(\[\n\u2013\u2014-]|_)*"
_JOINED = re.compile(rf"{_NEAR}(?:(?:or|and)\b{_NEAR})?", re.IGNORECASE)


def read_label(text: str, labels: Sequence[str]) -> str | None:
    """The one of `labels` that `text` gives; None where it gives none, or more than one. What a model thought first
    does not count. <answer> tags must all agree, with each other and with a verdict that stands before or behind
    them."""
    before, *rest = _TAG.split(spoken(text).strip())
    if not rest:
        return _leading(before, labels)
    found = {_leading(content, labels) for content in rest[::2]} | ({_leading(before, labels)} - {None})
    label = found.pop()
    return None if label is None or found or any(_contradicts(part, label, labels) for part in rest[1::2]) else label


def _leading(text: str, labels: Sequence[str]) -> str | None:
    found = re.match(rf"[\W_]*{_any_of(labels)}", text, re.IGNORECASE)
    if found is None or (found[1].casefold() == "no" and not _VERDICT.match(text, found.end())):
        return None
    same = [label for label in labels if label.casefold() == found[1].casefold()]
    label = found[1] if found[1] in same else same[0]
    return None if _contradicts(text[found.end() :], label, labels, behind=True) else label


def _contradicts(text: str, label: str, labels: Sequence[str], *, behind: bool = False) -> bool:
    """Whether another label stands in `text` as a verdict. `behind`: the text goes on right behind `label`, so that
    "or no", "/ no" and " no" are one too, whatever follows."""
    others = [other for other in labels if other.casefold() != label.casefold()]
    if not others:
        return False
    joint = _JOINED.match(text) if behind else None
    for found in re.finditer(rf"(?<![^\W_]){_any_of(others)}", text, re.IGNORECASE):
        if _VERDICT.match(text, found.end()) or (joint is not None and found.start() == joint.end()):
            return True
    return False


def _any_of(labels: Sequence[str]) -> str:
    """A pattern for one of the labels as a whole word; an underscore belongs to no word, for it may be emphasis."""
    longest = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    return rf"({longest})(?![^\W_]|-\w)"
