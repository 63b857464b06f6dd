"""Which questions may stand in a checklist, and which say the same thing twice.

The rules look at wording only: they catch what makes an item useless as a test whatever the picture, and are written
for English. They forbid rather than demand, so that a question in another language passes unless it is a duplicate or
holds marks. What wording cannot tell (whether the thing is visible, whether the right answer is yes) is for the canary.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from premeditate.prompts.checklists import Wanted, plain
from premeditate.trace import ChecklistItem, Dimension

LONGEST = 300
"""Characters of a question."""
ALIKE = 0.8
"""Share of common words (of both together) from which two questions say the same."""

MARKED = "it holds reserved marks"
LONG = f"it is longer than {LONGEST} characters"
SHORT = "it is no whole question"
SEVERAL = "it is more than one question"
OPEN = "it cannot be answered by yes or no"
HIDDEN = "it is about what no picture shows"
WORDING = "it is about the instruction, not the picture"
INVERTED = "the right answer would be no"
ORDER = "it tells the judge what to say"
TWICE = "it says the same as another"
SURPLUS = "there are enough of its kind"

_AUXILIARY = "is|are|was|were|do|does|did|has|have|had|can|could|will|would|should|must|may"
# Which kind of question it is shows in the first of these words: "Is it clear what ...", "In the picture, what ...".
_FIRST = re.compile(rf"\b(?:(?P<open>what|which|who|whom|whose|where|when|why|how)|(?:{_AUXILIARY}))\b", re.IGNORECASE)
_OPEN = re.compile(
    r"^(?:describe|list|name|rate|score|count|explain|give|tell|compare|write)\b|\bon a scale\b"
    r"|\bfrom \d+ to \d+ (?:stars|points)\b|\bor not\?"
    # "Is it red or is it blue?"
    rf"|\bor (?:{_AUXILIARY}) (?:it|he|she|they|there|this|that|these|those|the)\b",
    re.IGNORECASE,
)
_HIDDEN = re.compile(
    r"\b(?:metadata|exif|file (?:name|size|format|type)|pixel dimensions|dpi|copyright holder|photoshop(?:ped)?|smell"
    r"|(?:editing|editor|ai) (?:model|software|tool)s?|sounds? like|in real life|the photographer"
    r"|the (?:artist|author)(?:'s|s')? intentions?)\b",
    re.IGNORECASE,
)
_ASKED = r"(?:instruction|prompt|request|command|edit(?:ing)? task)s?"
_WORDING = re.compile(
    rf"\b(?:the|this|that|these|given|original|user['’]?s?|edit|editing) {_ASKED}\b"
    r"(?! (?:manual|book|sheet|booklet|leaflet|sign|card|panel|line|window|button|stop))"
    r"|\b(?:as|was|were|is|are|been) (?:asked|requested|instructed|specified|prompted)\b|\bthe user\b"
    rf"|\b(?:follow|obey|satisf|fulfil|match)\w* (?:all )?{_ASKED}\b"
    r"|\bas (?:described|stated|mentioned) (?:in|by|above)\b",
    re.IGNORECASE,
)
# Words that turn a question round wherever they stand, and those that do so unless they only name the thing that is
# asked about ("the clean shirt", "a hidden door").
_NEGATED = re.compile(
    r"\b(?:no|not|never|without|none|nothing|free (?:of|from)|clear of|avoid\w*|rather than|instead of|same|intact"
    r"|remain\w*|as before|un(?:affected|altered|blemished|blurred|broken|changed|damaged|distorted|disturbed|edited"
    r"|harmed|interrupted|marked|marred|modified|moved|obstructed|scathed|spoil(?:ed|t)|touched|warped))\b|n['’]t\b|-free\b"
    r"|(?<!\bthe )(?<!\ba )(?<!\ban )\b(?:invisible|hidden|absent|still"
    r"|(?:clean|smooth|seamless)(?:ly)?(?= *(?:\?|$|[,;:]|(?:and|at|around|where|with|even|everywhere)\b)))\b",
    re.IGNORECASE,
)
_CHANGED = re.compile(
    r"^(?:has|have|did|was|were|is|are)\b.*\b(?:chang(?:e|ed)|alter(?:ed)?|modified|different|damaged|distorted|lost|"
    r"missing|removed|moved)\b",
    re.IGNORECASE,
)
_FLAWED = re.compile(
    r"^(?:is|are|does|do|has|have|can)\b.*\b(?:artifacts?|artefacts?|distort(?:ed|ions?)|deform(?:ed|ities)|seams?|halos?"
    r"|glitch(?:es)?|blurr?y|blurred|noisy|smear(?:s|ed)|unnatural|unrealistic|warped|flaws?|defects?|extra (?:limbs|"
    r"fingers))\b",
    re.IGNORECASE,
)
_ORDER = re.compile(
    r"\b(?:answer|reply|respond|output|return)\b[^?]{0,20}\b(?:yes|no)\b|\bignore (?:all|any|the|previous|earlier)\b",
    re.IGNORECASE,
)
_WORDS = re.compile(r"\w+(?:['’]\w+)?")
_EMPTY = frozenset(
    _WORDS.findall(
        "a an the is are was were be been does do did has have had there it its this that these those of in on at to"
        " and or with by for from as any all still edited edit picture image photo scene visible shown seen can clearly"
        " now"
    )
)
# Two questions that differ in one of these each are two questions, however long they are.
_TELLING = frozenset(
    _WORDS.findall(
        "left right top bottom upper lower above below over under front behind inside outside before after first second"
        " third last one two three four five six seven eight nine ten no not without red orange yellow green cyan blue"
        " purple pink brown black white gray grey gold silver large small big little tall short long wide narrow open"
        " closed on off man woman boy girl his her north south east west day night summer winter spring autumn"
    )
)


@dataclass(frozen=True)
class Dropped:
    question: str
    reason: str


@dataclass(frozen=True)
class Sifted:
    """`items`: those that stand, in order. `dropped`: the others, each with the reason."""

    items: tuple[ChecklistItem, ...] = ()
    dropped: tuple[Dropped, ...] = field(default=())

    @property
    def counts(self) -> Counter[Dimension]:
        return Counter(item.dimension for item in self.items)


def flaw(item: ChecklistItem) -> str | None:
    """Why a question cannot stand in a checklist, None where it can."""
    text = " ".join(item.question.split())
    if plain(text) != text:
        return MARKED
    if len(text) > LONGEST:
        return LONG
    text = text.replace("？", "?")
    body = text.rstrip("? ")
    if "?" in body:
        return SEVERAL
    # Languages without blanks between words have questions of one "word".
    if len(_WORDS.findall(body)) < 2 and body.isascii():
        return SHORT
    first = _FIRST.search(body)
    if (first and first["open"]) or _OPEN.search(text):
        return OPEN
    for found, reason in ((_ORDER, ORDER), (_WORDING, WORDING), (_HIDDEN, HIDDEN)):
        if found.search(text):
            return reason
    turned = {"keep": _CHANGED, "quality": _FLAWED}.get(item.dimension)
    return INVERTED if turned and turned.match(text) and not _NEGATED.search(text) else None


def normalise(question: str) -> str:
    """The wording without case, marks and blanks: equal for questions that differ in these only."""
    return " ".join(_WORDS.findall(question.casefold()))


def alike(one: str, other: str) -> bool:
    """Whether two questions say the same: the same wording, or nearly the same words, unless each has a telling word of
    its own (left and right, red and blue, a number, a cell's name)."""
    if normalise(one) == normalise(other):
        return True
    a, b = _words(one), _words(other)
    if not a or not b or len(a & b) < ALIKE * len(a | b):
        return False
    return not (_telling(a - b) and _telling(b - a)) and not (_telling(a ^ b) & {"no", "not", "without"})


def sift(items: Sequence[ChecklistItem], wanted: Wanted | None = None, have: Sequence[ChecklistItem] = ()) -> Sifted:
    """The items of a draft that may stand beside `have`. `wanted`: of a dimension, at most so many are kept, those of
    `have` counted; None: all, and a question may stand in two dimensions, as the author's own kind of list says."""
    kept: list[ChecklistItem] = []
    dropped: list[Dropped] = []
    counts = Counter(item.dimension for item in have)
    for item in items:
        reason = flaw(item)
        beside = [o for o in (*have, *kept) if wanted is not None or o.dimension == item.dimension]
        if reason is None and any(alike(item.question, other.question) for other in beside):
            reason = TWICE
        if reason is None and wanted is not None and counts[item.dimension] >= wanted.get(item.dimension, (0, 0))[1]:
            reason = SURPLUS
        if reason is not None:
            dropped.append(Dropped(item.question, reason))
            continue
        kept.append(item.model_copy(update={"question": _mended(item.question)}))
        counts[item.dimension] += 1
    return Sifted(tuple(kept), tuple(dropped))


def lacking(counts: Counter[Dimension], wanted: Wanted) -> dict[Dimension, tuple[int, int]]:
    """What is still wanted of each dimension that has too few: at least, at most."""
    return {d: (low - counts[d], high - counts[d]) for d, (low, high) in wanted.items() if counts[d] < low}


def _mended(question: str) -> str:
    text = " ".join(question.split())
    return text if text.endswith(("?", "？")) else text.rstrip(".!;: ") + "?"


def _words(question: str) -> frozenset[str]:
    return frozenset(_WORDS.findall(question.casefold())) - _EMPTY


def _telling(words: frozenset[str]) -> frozenset[str]:
    return frozenset(w for w in words if w in _TELLING or any(c.isdigit() for c in w))
