"""Task, round, chain, verdict and trace: the one thing that flows through the house.

Every model here is typed, versioned and frozen: a trace read back from JSON equals the one written. A trace is built
by folding events (`Trace.apply`), so that a killed run is a shorter trace, never a broken one. Images are not held
here: an `ImageRef` names bytes in the store by their SHA-256.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

Status = Literal["scored", "refused", "unparsable", "unavailable"]
Dimension = Literal["follow", "keep", "quality"]
Base = Literal["original", "last"]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageRef(Record):
    """Bytes in the store, named by content. Sizes are pixels."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    width: int = Field(gt=0)
    height: int = Field(gt=0)


class Task(Record):
    """What is asked for: source image(s) and an instruction. `meta` carries a dataset's own columns. A task whose
    pictures could not be read has none, and `meta["problem"]` says why: its trace fails with that."""

    id: str
    images: tuple[ImageRef, ...]
    instruction: str
    meta: dict[str, Any] = {}


class ChecklistItem(Record):
    """A yes/no question whose right answer, on a perfect edit, is yes."""

    question: str
    dimension: Dimension


class Checklist(Record):
    """`note`: what was left out of it and why, and what it lacks. `edited`: a person changed what the author wrote."""

    status: Status = "scored"
    items: tuple[ChecklistItem, ...] = ()
    raw: str = ""
    author: str = ""
    seconds: float = 0.0
    tokens: int = 0
    note: str = ""
    edited: bool = False


class Plan(Record):
    """The explicit edit steps (c') that an instruction amounts to."""

    status: Status = "scored"
    steps: tuple[str, ...] = ()
    explanation: str = ""
    raw: str = ""
    author: str = ""
    seconds: float = 0.0
    tokens: int = 0


class Answer(Record):
    """One checklist item's answer. `p_yes` in [0, 1], None where the judge gave no probability."""

    item: ChecklistItem
    status: Status
    yes: bool | None = None
    p_yes: float | None = Field(default=None, ge=0, le=1)
    evidence: str = ""


class Verdict(Record):
    """Answers per item and a score in [0, 1] per dimension. A dimension that was not scored is absent, never 0."""

    status: Status
    answers: tuple[Answer, ...] = ()
    scores: dict[str, float] = {}
    verifier: str = ""
    reason: str = ""
    seconds: float = 0.0
    tokens: int = 0

    @property
    def passed(self) -> bool:
        """True only where every item was scored and answered yes."""
        return self.status == "scored" and bool(self.answers) and all(a.yes is True for a in self.answers)

    @property
    def weighted(self) -> dict[str, float]:
        """Mean p(yes) per dimension, in [0, 1]: finer than the share of yes in `scores`, and absent where that is. An
        answer without a probability counts as 1 or 0."""
        parts: dict[str, list[Answer]] = {}
        for answer in self.answers:
            parts.setdefault(answer.item.dimension, []).append(answer)
        return {
            dimension: sum(a.p_yes if a.p_yes is not None else float(a.yes is True) for a in part) / len(part)
            for dimension, part in sorted(parts.items())
            if all(a.status == "scored" for a in part)
        }

    @property
    def score(self) -> float | None:
        """Mean p(yes) over the items, None unless scored: ranks rounds, never decides that one is verified."""
        if self.status != "scored" or not self.answers:
            return None
        return sum(a.p_yes if a.p_yes is not None else float(a.yes is True) for a in self.answers) / len(self.answers)


class Critique(Record):
    """The critic's reflection (c''): what is missing or wrong, scores in 0-10, and the refined prompt."""

    status: Status
    satisfied: bool | None = None
    problem: str = ""
    semantic: float | None = Field(default=None, ge=0, le=10)
    quality: float | None = Field(default=None, ge=0, le=10)
    prompt: tuple[str, ...] = ()
    base: Base = "original"
    raw: str = ""
    author: str = ""
    seconds: float = 0.0
    tokens: int = 0


class Edit(Record):
    """One call of the editor: prompt in, image out."""

    prompt: str
    base: Base
    source: ImageRef
    image: ImageRef
    seed: int
    editor: str = ""
    seconds: float = 0.0


class Round(Record):
    """prompt -> image -> verdict -> critique. A stepwise round holds one edit per step; its image is the last one's."""

    edits: tuple[Edit, ...] = Field(min_length=1)
    verdict: Verdict | None = None
    critique: Critique | None = None

    @property
    def image(self) -> ImageRef:
        return self.edits[-1].image

    @property
    def prompt(self) -> str:
        return " then ".join(e.prompt for e in self.edits)


class Chain(Record):
    """One sampled reasoning path with its rounds."""

    plan: Plan | None = None
    rounds: tuple[Round, ...] = ()
    stopped: str | None = None
    error: str | None = None


class Selection(Record):
    """The chosen round (indices into the trace) and why. `verified` says that its verdict passed."""

    chain: int
    round: int
    verified: bool
    reason: str


class Started(Record):
    type: Literal["started"] = "started"
    version: int = SCHEMA_VERSION
    trace_id: str
    task: Task
    settings: dict[str, Any] = {}
    versions: dict[str, str] = {}
    chains: int = 1
    time: str = ""


class ChecklistWritten(Record):
    type: Literal["checklist"] = "checklist"
    checklist: Checklist


class PlanWritten(Record):
    type: Literal["plan"] = "plan"
    chain: int
    plan: Plan


class RoundEdited(Record):
    type: Literal["edited"] = "edited"
    chain: int
    edits: tuple[Edit, ...]


class RoundJudged(Record):
    type: Literal["judged"] = "judged"
    chain: int
    round: int
    verdict: Verdict


class RoundCritiqued(Record):
    type: Literal["critiqued"] = "critiqued"
    chain: int
    round: int
    critique: Critique


class ChainStopped(Record):
    type: Literal["stopped"] = "stopped"
    chain: int
    reason: str
    error: str | None = None


class Finished(Record):
    type: Literal["finished"] = "finished"
    selection: Selection | None = None
    error: str | None = None
    seconds: float = 0.0
    calls: dict[str, int] = {}


Event = Annotated[
    Started | ChecklistWritten | PlanWritten | RoundEdited | RoundJudged | RoundCritiqued | ChainStopped | Finished,
    Field(discriminator="type"),
]


class Trace(Record):
    """A task, all of its chains, the selection and its reason."""

    version: int = SCHEMA_VERSION
    id: str
    task: Task
    settings: dict[str, Any] = {}
    versions: dict[str, str] = {}
    started: str = ""
    checklist: Checklist | None = None
    chains: tuple[Chain, ...] = ()
    selection: Selection | None = None
    error: str | None = None
    finished: bool = False
    seconds: float = 0.0
    calls: dict[str, int] = {}

    @classmethod
    def start(cls, event: Started) -> Trace:
        return cls(
            version=event.version,
            id=event.trace_id,
            task=event.task,
            settings=event.settings,
            versions=event.versions,
            started=event.time,
            chains=(Chain(),) * event.chains,
        )

    def apply(self, event: Event) -> Trace:
        """The trace after one more event. Raises ValueError for an event that does not follow from this trace."""
        match event:
            case Started():
                raise ValueError(f"trace {self.id} was already started")
            case ChecklistWritten():
                return self.model_copy(update={"checklist": event.checklist})
            case Finished():
                return self.model_copy(
                    update={
                        "selection": event.selection,
                        "error": event.error,
                        "finished": True,
                        "seconds": event.seconds,
                        "calls": event.calls,
                    }
                )
        if not 0 <= event.chain < len(self.chains):
            raise ValueError(f"event for chain {event.chain} of {len(self.chains)}")
        chain = self.chains[event.chain]
        match event:
            case PlanWritten():
                chain = chain.model_copy(update={"plan": event.plan})
            case RoundEdited():
                chain = chain.model_copy(update={"rounds": (*chain.rounds, Round(edits=event.edits))})
            case ChainStopped():
                chain = chain.model_copy(update={"stopped": event.reason, "error": event.error})
            case RoundJudged() | RoundCritiqued():
                if not 0 <= event.round < len(chain.rounds):
                    raise ValueError(f"event for round {event.round} of {len(chain.rounds)}")
                update = {"verdict": event.verdict} if isinstance(event, RoundJudged) else {"critique": event.critique}
                rounds = list(chain.rounds)
                rounds[event.round] = rounds[event.round].model_copy(update=update)
                chain = chain.model_copy(update={"rounds": tuple(rounds)})
        chains = list(self.chains)
        chains[event.chain] = chain
        return self.model_copy(update={"chains": tuple(chains)})

    @property
    def verified(self) -> bool:
        return self.selection is not None and self.selection.verified

    @property
    def status(self) -> Literal["verified", "unverified", "failed", "unfinished"]:
        """How the task ended; "failed": there is no edit, or the work broke off with an error."""
        if not self.finished:
            return "unfinished"
        if self.selection is None or self.error:
            return "failed"
        return "verified" if self.verified else "unverified"

    @property
    def chosen(self) -> Round | None:
        return None if self.selection is None else self.chains[self.selection.chain].rounds[self.selection.round]
