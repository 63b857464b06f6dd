"""Has a reasoner write the checklist of each task once.

A task is its pictures' pixels and its instruction, whatever it is called. What was written is kept in memory, and in a
folder where one is given; what could not be written is asked for again the next time.

A reasoner whose prompt set speaks JSON is shown examples from the pool, asked for a number of questions of each
dimension, sifted (`validation`), and asked once more for what is missing. Any other writes its own kind of list, which
is sifted and otherwise taken as it is.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from PIL import Image

from premeditate.errors import PremeditateError
from premeditate.local import Gate
from premeditate.prompts import checklists as words
from premeditate.prompts import get
from premeditate.prompts.checklists import WANTED, Wanted
from premeditate.prompts.general import DIMENSIONS
from premeditate.reasoners.base import ChatRequest, Completion, Reasoner, chat_all
from premeditate.remote import EndpointError
from premeditate.rewards.base import Sample
from premeditate.rewards.checklists.canary import CanaryAsker
from premeditate.rewards.checklists.files import ChecklistFolder
from premeditate.rewards.checklists.pool import Pool, shipped
from premeditate.rewards.checklists.validation import Dropped, lacking, sift
from premeditate.trace import Checklist, ChecklistItem, Dimension, Status, Task

KEPT = 65_536
"""Checklists held in memory; beyond that the oldest are asked for again."""
EXAMPLES = 4
"""As many as Edit-R1 draws from its pool (appendix)."""
MOST = 16
"""Questions of one dimension, at most."""
TEMPERATURE = 0.7
"""Of the second asking: greedy, a model would only say the same again."""
UNREADABLE = "it is no question with a dimension"


@dataclass(frozen=True)
class Subject:
    """What a checklist is about. `images`: the sources, the first of which is edited; `references`: what else the
    instruction refers to."""

    images: tuple[Image.Image, ...]
    instruction: str
    references: tuple[Image.Image, ...] = ()

    def content(self) -> str:
        """A hash of all of it."""
        found = hashlib.sha256(f"{len(self.images)} {self.instruction}\0".encode("utf-8", "replace"))
        for image in (*self.images, *self.references):
            found.update(f"{image.mode} {image.size}\0".encode() + image.tobytes())
        return found.hexdigest()


@dataclass
class _Work:
    """A checklist on its way."""

    subject: Subject
    content: str
    items: list[ChecklistItem] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    status: Status = "scored"
    seconds: float = 0.0
    tokens: int = 0

    @property
    def counts(self) -> Counter[Dimension]:
        return Counter(item.dimension for item in self.items)


class ChecklistBuilder:
    """`dropped`: how many questions were left out, by reason, so far. `asked`: calls of the reasoner."""

    def __init__(
        self, reasoner: Reasoner, *, wanted: Wanted | None = None, examples: int = EXAMPLES,
        pool: Pool | str | os.PathLike[str] | None = None, folder: str | os.PathLike[str] | None = None,
        prover: CanaryAsker | None = None,
    ) -> None:  # fmt: skip
        """`wanted`: {dimension: (at least, at most)}, 3-4 follow, 3-4 keep and 2-3 quality by default; a dimension that
        is not named is not wanted. `examples`: drawn from `pool` (one of your own by its path) for each task.
        `folder`: where checklists are kept as files that may be edited. `prover`: tries every new question on the
        unedited picture (`ChecklistVerifier` is one), and what proves nothing there is left out.

        Raises ValueError for numbers that make no sense, `PoolError` for a pool that cannot be read."""
        self.reasoner, self.prompts = reasoner, get(reasoner.prompts)
        self.wanted = check_wanted(WANTED if wanted is None else wanted)
        if type(examples) is not int or examples < 0:
            raise PremeditateError(f"the number of examples is {examples!r}", "give a whole number of at least 0")
        self.examples = examples
        self.pool = pool if isinstance(pool, Pool) else shipped() if pool is None else Pool.load(pool)
        self.folder = None if folder is None else ChecklistFolder(folder)
        self.prover = prover
        self.dropped: Counter[str] = Counter()
        self.asked = 0
        self._long = words.takes_examples(self.prompts)
        self._known: dict[str, Checklist] = {}
        self._gate = Gate(1)

    @property
    def version(self) -> str:
        """What shapes a checklist beside its task and its author."""
        if not self._long:
            return f"{self.prompts.name} {words.VERSION}"
        counts = " ".join(f"{d} {low}-{high}" for d, (low, high) in self.wanted.items())
        return f"{self.prompts.name} {words.VERSION}, {counts}, {self.examples} of {self.pool.digest}"

    async def write(self, subjects: Sequence[Subject]) -> list[Checklist]:
        """The checklist of each subject, in order. One that could not be written has a status that says so. Raises what
        the reasoner raises, and `ChecklistFileError` for a damaged file in the folder."""
        contents = [subject.content() for subject in subjects]
        # One at a time: samples of one task that come in two calls ask once.
        async with self._gate():
            await self._named()
            lacks = {c: s for c, s in zip(contents, subjects, strict=True) if c not in self._known}
            found = {c: there for c, s in lacks.items() if (there := self._filed(c, s)) is not None}
            work = [_Work(s, c) for c, s in lacks.items() if c not in found]
            if work:
                await self._write(work)
                for one in work:
                    found[one.content] = self._file(one, self._finish(one))
            outcome = [found[c] if c in found else self._known[c] for c in contents]
            self._keep({c: checklist for c, checklist in found.items() if checklist.status == "scored"})
        return outcome

    async def _named(self) -> None:
        """An endpoint knows its model's name, which files are found by, once it was asked."""
        if self.folder is not None and callable(prepare := getattr(self.reasoner, "prepare", None)):
            with suppress(EndpointError):  # asking for a checklist says what is wrong
                await prepare()

    def key(self, content: str) -> str:
        """The name of a checklist in the folder: its task, its author and its prompt."""
        told = "\0".join((content, self.version, self.reasoner.name, "proven" if self.prover else ""))
        return hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()

    def _filed(self, content: str, subject: Subject) -> Checklist | None:
        return None if self.folder is None else self.folder.get(self.key(content), subject.instruction)

    def _file(self, one: _Work, checklist: Checklist) -> Checklist:
        if self.folder is None or checklist.status != "scored":
            return checklist
        return self.folder.put(self.key(one.content), one.subject.instruction, checklist)

    def _keep(self, more: dict[str, Checklist]) -> None:
        self._known |= more
        while len(self._known) > KEPT:
            self._known.pop(next(iter(self._known)))

    async def _write(self, work: Sequence[_Work]) -> None:
        await self._ask(work, again=False)
        if self._long:
            short = [w for w in work if w.status in ("scored", "unparsable") and lacking(w.counts, self.wanted)]
            if short:
                await self._ask(short, again=True)

    async def _ask(self, work: Sequence[_Work], *, again: bool) -> None:
        requests = [self._request(one, again) for one in work]
        self.asked += len(requests)
        completions = await chat_all(self.reasoner, requests)
        before = [len(one.items) for one in work]
        for one, done in zip(work, completions, strict=True):
            self._read(one, done)
        if self.prover is not None:
            await self._prove(work, before)

    def _request(self, one: _Work, again: bool) -> ChatRequest:
        subject, prompts = one.subject, self.prompts
        images = (*subject.images, *subject.references)
        if not self._long:
            return ChatRequest(images, prompts.checklist(subject.instruction), max_tokens=prompts.max_tokens,
                               schema=prompts.schemas.get("checklist"))  # fmt: skip
        wanted: Wanted = lacking(one.counts, self.wanted) if again else self.wanted
        text = words.write(
            subject.instruction, self.pool.draw(one.content, self.examples), wanted, sources=len(subject.images),
            references=len(subject.references), have=one.items,
        )  # fmt: skip
        return ChatRequest(images, text, max_tokens=prompts.max_tokens, schema=words.schema(wanted),
                           temperature=TEMPERATURE if again else 0.0, seed=int(again))  # fmt: skip

    def _read(self, one: _Work, done: Completion) -> None:
        """Adds what a completion holds. An answer to the second asking that is no good leaves the first as it is."""
        first = not one.raw
        one.seconds += done.seconds
        one.tokens += done.tokens
        one.raw.append(f"error: {done.error}" if done.error is not None else done.text)
        if done.error is not None:
            one.status = "unavailable" if first else one.status
            return
        if self._long:
            draft = words.parse(done.text)
            items, status = draft.items, draft.status
            one.dropped += [Dropped(entry, UNREADABLE) for entry in draft.unreadable]
        else:
            whole = self.prompts.parse_checklist(done.text)
            items, status = whole.items, whole.status
        if first or status == "scored":
            one.status = status
        sifted = sift(items, self.wanted if self._long else None, one.items)
        one.items += sifted.items
        one.dropped += sifted.dropped

    async def _prove(self, work: Sequence[_Work], before: Sequence[int]) -> None:
        """Leaves out new items that prove nothing on the unedited picture. One that nobody answered stays."""
        assert self.prover is not None
        asked = [(one, start) for one, start in zip(work, before, strict=True) if len(one.items) > start]
        samples = []
        for one, start in asked:
            source, items = one.subject.images[0], tuple(one.items[start:])
            task = Task(id=one.content[:12], images=(), instruction=one.subject.instruction)
            samples.append(Sample(task, source, source, Checklist(items=items)))
        if not samples:
            return
        for (one, start), canary in zip(asked, await self.prover.canaries(samples), strict=True):
            bad = [t for t in canary.items if t.exposed and t.answer.status == "scored"]
            one.dropped += [Dropped(t.answer.item.question, t.exposed) for t in bad]
            gone = {t.answer.item for t in bad}
            one.items[start:] = [item for item in one.items[start:] if item not in gone]

    def _finish(self, one: _Work) -> Checklist:
        self.dropped.update(dropped.reason for dropped in one.dropped)
        items = tuple(sorted(one.items, key=lambda item: DIMENSIONS.index(item.dimension)))
        status, few = one.status, lacking(one.counts, self.wanted) if self._long else {}
        none = [d for d in few if not one.counts[d]]
        # A test that does not ask about one of the dimensions is another test.
        if status == "scored" and (not items or none):
            status = "unparsable"
        made = Checklist(status=status, items=items if status == "scored" else (), raw="\n".join(one.raw),
                         author=self.reasoner.name, seconds=one.seconds, tokens=one.tokens)  # fmt: skip
        return made.model_copy(update={"note": self._note(one, few)})

    def _note(self, one: _Work, few: Mapping[Dimension, tuple[int, int]]) -> str:
        if one.status not in ("scored", "unparsable"):
            return ""
        parts = []
        if one.dropped:
            reasons = Counter(dropped.reason for dropped in one.dropped)
            told = "; ".join(f"{count} because {reason}" for reason, count in reasons.items())
            parts.append(f"{len(one.dropped)} question{'s' if len(one.dropped) > 1 else ''} left out: {told}")
        if few:
            told = ", ".join(f"{one.counts[d]} of {self.wanted[d][0]} {d}" for d in few)
            parts.append(f"too few questions, asked for twice: {told}")
        return ". ".join(parts)


def check_wanted(wanted: Wanted) -> dict[Dimension, tuple[int, int]]:
    """The numbers in the order of the dimensions. Raises ValueError for numbers that make no sense."""
    mend = 'give {"follow": (3, 4), ...}: at least, at most'
    if unknown := [d for d in wanted if d not in DIMENSIONS]:
        raise PremeditateError(f"there is no dimension {str(unknown[0])!r}", f"use {', '.join(DIMENSIONS)}")
    for dimension, pair in wanted.items():
        whole = isinstance(pair, tuple | list) and len(pair) == 2 and all(type(n) is int for n in pair)
        if not whole or not 0 <= pair[0] <= pair[1] <= MOST:
            raise PremeditateError(f"the number of {dimension} questions is {pair!r}", mend)
    found: dict[Dimension, tuple[int, int]] = {d: (wanted[d][0], wanted[d][1]) for d in DIMENSIONS if d in wanted}
    if not any(high for _, high in found.values()):
        raise PremeditateError("no question is wanted", mend)
    return found


def subject_of(sample: Sample) -> Subject:
    """What there is of a sample before it is edited."""
    return Subject((sample.source,), sample.task.instruction)
