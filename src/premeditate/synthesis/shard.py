"""One shard: from tasks to judged edits, and a count of everything that is not among them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from premeditate.datasets.judged import Candidate, JudgedEdit, put
from premeditate.datasets.tasks import BadRow, TaskRow, prompt_of
from premeditate.editors.base import Editor, EditRequest, EditResult
from premeditate.errors import PremeditateError, check_instruction, one_line
from premeditate.images import resize_back
from premeditate.rewards.base import Sample
from premeditate.rewards.checklists.builder import Subject
from premeditate.synthesis.errors import DeadPart
from premeditate.synthesis.forms import PROBLEM, Asked, Joint, Judge
from premeditate.synthesis.parts import Parts
from premeditate.synthesis.settings import Settings, key_of, seed_of
from premeditate.synthesis.source import brought
from premeditate.trace import Checklist, ChecklistItem, Task, Verdict

FEW = 8
"""Tasks in a row: where everything failed with fewer, and with fewer than a shard has, they may be at fault, and the
run ends only if nothing ever worked."""
TASKS_LOST = ("unreadable task", "no principles")
EDITS_LOST = ("edit failed", "no gold verdict", "no candidate", "below the least accuracy")
"""Why a task or an edit is not in the data."""
MEND = "put that right and go on with --resume"
APART = "ask a model that answers single questions only as apart:SPEC, or leave it out"
GONE = "bring back the pictures that they name and go on with --resume, or begin anew with other tasks"
Result = TypeVar("Result")
Say = Callable[[str, int], None]
"""Told a stage as it begins, and how much there is of it."""


@dataclass
class Counts:
    """What happened in a shard. `lost`: tasks and edits by reason; `reasons`: the words behind it, with their numbers.
    `edits`: per editor. `candidates`: per "judge @ temperature", by status. `seconds`: per stage."""

    tasks: int = 0
    asked: int = 0
    kept: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, Counter[str]] = field(default_factory=dict)
    edits: dict[str, Counter[str]] = field(default_factory=dict)
    candidates: dict[str, Counter[str]] = field(default_factory=dict)
    problems: dict[str, Counter[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def lose(self, what: str, why: str) -> None:
        self.lost[what] += 1
        self.reasons.setdefault(what, Counter())[_reason(why)] += 1

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 3)

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass
class _Edit:
    """An edit on its way."""

    id: str
    row: TaskRow
    items: tuple[ChecklistItem, ...]
    last: str
    editor: str
    image: Image.Image
    gold: tuple[bool, ...] = ()
    reasons: tuple[str, ...] = ()
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def sample(self) -> Sample:
        """What judges and verifier see: nothing of what else the task knows."""
        task = Task(id=self.id, images=(), instruction=self.row.instruction)
        return Sample(task, self.row.images[0], self.image, Checklist(items=self.items))


class Maker:
    """Makes shards. `begun`: there are shards already, so that all parts have worked before, and one short bad shard
    does not condemn them."""

    def __init__(
        self, parts: Parts, settings: Settings, folder: Path, say: Say | None = None, *, begun: bool = False
    ) -> None:
        self.parts, self.settings, self.folder = parts, settings, folder
        self.say: Say = say or (lambda stage, count: None)
        self.begun = begun
        self.proven: set[str] = set()
        self.failed: Counter[str] = Counter()  # tasks since a part last worked

    async def make(self, rows: Sequence[TaskRow | BadRow]) -> tuple[list[JudgedEdit], Counts]:
        """The edits that are kept, in the order of tasks, editors and seeds. Their pictures are in the folder when
        this returns. Raises `DeadPart` where one of the parts failed with everything."""
        counts = Counts(tasks=len(rows))
        with counts.timed("principles"):
            ready = await self._principles(rows, counts)
        with counts.timed("edits"):
            edits = await self._edits(ready, counts)
        with counts.timed("gold"):
            edits = await self._gold(edits, counts)
        with counts.timed("candidates"):
            await self._candidates(edits, counts)
        with counts.timed("selection"):
            # Encoding pictures takes its time, in which calls of other shards are looked after.
            kept = await asyncio.to_thread(self._select, edits, counts)
        counts.kept = len(kept)
        return kept, counts

    # -- principles ----------------------------------------------------------------------------------------------

    async def _principles(
        self, rows: Sequence[TaskRow | BadRow], counts: Counts
    ) -> list[tuple[TaskRow, tuple[ChecklistItem, ...]]]:
        found: list[tuple[TaskRow, Checklist | None]] = []
        unread: list[str] = []
        for row in rows:
            try:
                if isinstance(row, BadRow):
                    raise PremeditateError(row.problem)
                row = replace(row, instruction=check_instruction(row.instruction))
                prompt_of(row)
                if not row.images:
                    raise PremeditateError("it has no picture", "give at least one")
            except ValueError as error:
                unread.append(one_line(error, ValueError))
                counts.lose("unreadable task", unread[-1])
                continue
            found.append((row, brought(row)))
        # A disk that is not mounted makes all of them unreadable, and is no fault of theirs.
        self._alive("reading the tasks", unread, len(rows), len(rows), GONE)
        lacking = [i for i, (_, checklist) in enumerate(found) if checklist is None]
        if lacking and self.parts.builder is not None:
            self.say("principles", len(lacking))
            subjects = [Subject(found[i][0].images, found[i][0].instruction) for i in lacking]
            written = await _whole("the reasoner that writes principles", self.parts.builder.write(subjects))
            failures = [c.note or c.raw for c in written if c.status != "scored"]
            self._alive("the reasoner that writes principles", failures, len(written), len(lacking))
            for i, made in zip(lacking, written, strict=True):
                found[i] = (found[i][0], made)
        elif len(lacking) < len(found):
            self.proven.add("tasks")
        elif lacking and not self.begun and "tasks" not in self.proven:
            raise DeadPart(f"none of {len(found)} tasks brings principles, and nobody writes them",
                           "add --reasoner SPEC, or give each task its own in meta.checklist")  # fmt: skip
        ready = []
        for row, checklist in found:
            if checklist is None:
                counts.lose("no principles", "the task brings none (meta.checklist), and no --reasoner writes them")
            elif checklist.status != "scored" or not checklist.items:
                counts.lose("no principles", f"{checklist.status}: {checklist.note or checklist.raw}")
            else:
                ready.append((row, checklist.items))
        return ready

    # -- edits ---------------------------------------------------------------------------------------------------

    async def _edits(self, ready: Sequence[tuple[TaskRow, tuple[ChecklistItem, ...]]], counts: Counts) -> list[_Edit]:
        each = self.settings.edits_per_editor
        places = [(row, items, k) for row, items in ready for k in range(each)]
        editors = self.parts.editors
        counts.asked = len(places) * len(editors)
        self.say("edits", counts.asked)
        made = await asyncio.gather(*(self._edited(name, editor, places) for name, editor in editors.items()))
        results = dict(zip(editors, made, strict=True))
        found = []
        for at, (row, items, k) in enumerate(places):
            for name in editors:
                result, tally = results[name][at], counts.edits.setdefault(name, Counter())
                if result.image is None:
                    tally["failed"] += 1
                    counts.lose("edit failed", f"{name}: {result.error or 'no reason was given'}")
                    continue
                image = resize_back(result.image, row.images[0].size)
                tally["made"] += 1
                tally["unedited"] += image.tobytes() == row.images[0].tobytes()
                found.append(_Edit(f"{row.id}/{name}/{k}", row, items, prompt_of(row), name, image))
        return found

    async def _edited(self, name: str, editor: Editor, places: Sequence[tuple[TaskRow, Any, int]]) -> list[EditResult]:
        if not places:
            return []
        requests = []
        for row, _, k in places:
            place = (self.settings.seed, "edit", row.id, name, k)
            requests.append(
                EditRequest(row.images, prompt_of(row), seed_of(*place), key_of(self.settings.digest, *place))
            )
        done = list(await _whole(f"the editor {name}", editor.edit(requests)))
        if len(done) != len(requests):
            raise RuntimeError(f"{name} returned {len(done)} edits for {len(requests)}")
        failures = [result.error or "" for result in done if result.image is None]
        self._alive(f"the editor {name}", failures, len(done), len({row.id for row, *_ in places}))
        return done

    # -- gold ----------------------------------------------------------------------------------------------------

    async def _gold(self, edits: list[_Edit], counts: Counts) -> list[_Edit]:
        if not edits:
            return []
        self.say("gold", len(edits))
        name = f"the verifier {self.settings.verifier}"
        verdicts = list(await _whole(name, self.parts.verifier.verify([edit.sample for edit in edits])))
        if len(verdicts) != len(edits):
            raise RuntimeError(f"{name} returned {len(verdicts)} verdicts for {len(edits)} samples")
        found, whys = [], []
        for edit, verdict in zip(edits, verdicts, strict=True):
            if why := _no_gold(edit, verdict):
                whys.append(why)
                counts.lose("no gold verdict", why)
                continue
            edit.gold = tuple(answer.yes is True for answer in verdict.answers)
            edit.reasons = tuple(" ".join(answer.evidence.split())[:PROBLEM] for answer in verdict.answers)
            found.append(edit)
        self._alive(name, whys, len(edits), _tasks(edits))
        return found

    # -- candidates ----------------------------------------------------------------------------------------------

    async def _candidates(self, edits: Sequence[_Edit], counts: Counts) -> None:
        judges = self.parts.judges
        self.say("candidates", len(edits) * len(judges) * len(self.settings.temperatures))
        rows = await asyncio.gather(*(self._judged(judge, edits) for judge in judges))
        for row in rows:
            for edit, candidates in zip(edits, row, strict=True):
                edit.candidates += candidates
        for candidate in (c for edit in edits for c in edit.candidates):
            key = slot(candidate)
            counts.candidates.setdefault(key, Counter())[candidate.status] += 1
            if candidate.status != "scored":
                counts.problems.setdefault(key, Counter())[_reason(candidate.problem)] += 1

    async def _judged(self, judge: Judge, edits: Sequence[_Edit]) -> list[list[Candidate]]:
        work = [Asked(edit.sample, edit.last, self._seeds(judge, edit)) for edit in edits]
        found = await _whole(f"the judge {judge.name}", judge.candidates(work))
        every = [candidate for row in found for candidate in row]
        failures = [c for c in every if c.status != "scored"]
        said = any(c.status != "unavailable" for c in failures)
        self._alive(f"the judge {judge.name}", [c.problem for c in failures], len(every), _tasks(edits),
                    APART if said and isinstance(judge, Joint) else MEND)  # fmt: skip
        return found

    def _seeds(self, judge: Judge, edit: _Edit) -> tuple[int, ...]:
        return tuple(
            0 if t == 0 else seed_of(self.settings.seed, "judge", edit.id, judge.name, t)
            for t in self.settings.temperatures
        )

    # -- selection -----------------------------------------------------------------------------------------------

    def _select(self, edits: Sequence[_Edit], counts: Counts) -> list[JudgedEdit]:
        return [made for edit in edits if (made := self._kept(edit, counts)) is not None]

    def _kept(self, edit: _Edit, counts: Counts) -> JudgedEdit | None:
        candidates = [graded(candidate, edit.gold) for candidate in edit.candidates]
        chosen = choose(edit.id, candidates)
        if chosen is None:
            counts.lose("no candidate", "; ".join(sorted({c.problem for c in candidates})))
            return None
        best = candidates[chosen].accuracy
        assert best is not None
        if best < self.settings.min_accuracy:
            counts.lose("below the least accuracy", f"the best is below {self.settings.min_accuracy:g}")
            return None
        return JudgedEdit(
            id=edit.id, task=edit.row.id, instruction=edit.row.instruction,
            source=put(self.folder, edit.row.images[0]), edit=put(self.folder, edit.image), editor=edit.editor,
            principles=edit.items, gold=edit.gold, reasons=edit.reasons, candidates=tuple(candidates), chosen=chosen,
        )  # fmt: skip

    def _alive(self, part: str, failures: Sequence[str], total: int, tasks: int, mend: str = MEND) -> None:
        """Raises `DeadPart` where every try failed, unless it was with few tasks and the part has worked before."""
        if len(failures) < total:
            self.proven.add(part)
            del self.failed[part]
        elif total:
            self.failed[part] += tasks
            few = self.failed[part] < min(FEW, self.settings.shard_size)
            if not (few and (self.begun or part in self.proven)):
                why, times = Counter(_reason(failure) for failure in failures).most_common(1)[0]
                said = f"{times} times: {why}" if times > 1 else f"one of them: {why}"
                if self.settings.shard_size < FEW:
                    mend += f"; if it is the tasks' fault, begin anew with --shard-size {FEW} or more"
                raise DeadPart(f"{part} failed with all {total} of a shard ({said})", mend)


def graded(candidate: Candidate, gold: Sequence[bool]) -> Candidate:
    """With its accuracy: the share of its verdicts that are the gold ones; as it is where it is not scored."""
    if candidate.status != "scored":
        return candidate
    right = sum(said == true for said, true in zip(candidate.verdicts, gold, strict=True))
    return candidate.model_copy(update={"accuracy": right / len(gold)})


def choose(name: str, candidates: Sequence[Candidate]) -> int | None:
    """The index of the most accurate candidate; None where none is scored. Of several, a hash of `name` picks one, so
    that no judge wins ties by its place."""
    scored = [i for i, candidate in enumerate(candidates) if candidate.accuracy is not None]
    if not scored:
        return None
    best = max(candidates[i].accuracy or 0.0 for i in scored)
    tied = [i for i in scored if candidates[i].accuracy == best]
    return tied[seed_of("tie", name) % len(tied)]


def _tasks(edits: Sequence[_Edit]) -> int:
    return len({edit.row.id for edit in edits})


def slot(candidate: Candidate) -> str:
    """Names what a candidate came from."""
    return f"{candidate.judge} @ {candidate.temperature:g}"


def _no_gold(edit: _Edit, verdict: Verdict) -> str:
    """Why the verdict is not gold, "" where it is."""
    if verdict.status != "scored":
        return f"{verdict.status}: {verdict.reason or 'no reason was given'}"
    asked, answered = [i.question for i in edit.items], [a.item.question for a in verdict.answers]
    if asked != answered or any(a.status != "scored" or a.yes is None for a in verdict.answers):
        return "unparsable: the verifier did not answer the principles one by one"
    return ""


def _reason(text: str) -> str:
    return " ".join(text.split())[:160] or "no reason was given"


async def _whole(name: str, work: Awaitable[Result]) -> Result:
    """What the work gives. What it raises ends the run, and names the part; what the user can put right passes."""
    try:
        return await work
    except PremeditateError:
        raise
    except Exception as error:
        raise DeadPart(f"{name} failed: {one_line(error)}", MEND) from error
