"""An edit as it happens, in a terminal: the plan, each round, each check, and which round was chosen and why.

On a terminal there is colour and a line that says what is being waited for; elsewhere the same words, plain, one fact
a line.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from premeditate.errors import printable
from premeditate.trace import (
    ChainStopped,
    Checklist,
    ChecklistWritten,
    Critique,
    Event,
    Finished,
    Plan,
    PlanWritten,
    RoundCritiqued,
    RoundEdited,
    RoundJudged,
    Started,
    Trace,
    Verdict,
)
from premeditate.viewer.report import percent, seconds

_WAIT = {
    "started": "thinking",
    "checklist": "thinking",
    "plan": "editing",
    "edited": "checking",
    "judged": "looking",
    "critiqued": "editing",
    "stopped": "choosing",
}
LABEL = 11
"""Characters of the column of labels."""


def say(text: str) -> str:
    """Text of a model or a user, on one line and without power over the terminal."""
    return escape(printable(" ".join(text.split())))


def line(console: Console, label: str, text: str, style: str = "bold") -> None:
    """`text`, which may hold markup, beside a `label` in the column of labels."""
    console.print(f"[{style}]{label:<{LABEL}}[/{style}]{text}", soft_wrap=True, highlight=False)


class Waiting:
    """A line that changes while the block lasts, on a terminal; elsewhere, and with `quiet`, nothing."""

    def __init__(self, console: Console, label: str, *, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        # FORCE_COLOR asks for colour in a file or a CI log, but an animation there would only be noise.
        fancy = not quiet and console.file.isatty() and not console.is_dumb_terminal
        self.status: Status | None = console.status(f"[dim]{label}[/dim]", spinner="dots") if fancy else None

    def __enter__(self) -> Self:
        if self.status:
            self.status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self.status:
            self.status.stop()


class Progress(Waiting):
    """Give it to the engine as `on_event`. `label`: what the line says while the models are loaded."""

    def __init__(self, console: Console, label: str = "loading the models") -> None:
        super().__init__(console, label)
        self.seen = 0  # events; none where the whole edit was in the store already
        unicode = (console.encoding or "").lower().startswith("utf")
        self.yes, self.no, self.none = ("✓", "✗", "?") if unicode else ("+", "x", "?")

    def line(self, label: str, text: str, style: str = "bold") -> None:
        line(self.console, label, text, style)

    def __call__(self, trace: Trace, event: Event) -> None:
        self.seen += 1
        many = len(trace.chains) > 1
        chain = getattr(event, "chain", 0)
        tag = f"[dim]chain {chain + 1}[/dim]  " if many and hasattr(event, "chain") else ""
        match event:
            case Started():
                pass
            case ChecklistWritten():
                self._checklist(event.checklist)
            case PlanWritten():
                self._plan(event.plan, tag)
            case RoundEdited():
                number = len(trace.chains[chain].rounds)
                self.console.print()
                for index, edit in enumerate(event.edits):
                    label = f"round {number}" if index == 0 else ""
                    place = "" if edit.base == "original" else "on the last result, "
                    self.line(label, f"{tag}{say(edit.prompt)}  [dim]{place}{seconds(edit.seconds)}[/dim]")
            case RoundJudged():
                if many:
                    self.console.print(f"{'':<{LABEL}}{tag}[dim]round {event.round + 1}[/dim]", highlight=False)
                self._verdict(event.verdict)
            case RoundCritiqued():
                self._critique(event.critique, tag)
            case ChainStopped():
                if event.error:
                    self.line("failed", f"{tag}{say(event.error)}", "bold red")
                elif many:
                    self.line("", f"{tag}[dim]stopped: {say(event.reason)}[/dim]")
            case Finished():
                self.console.print()
                self.chosen(trace)
        if self.status:
            self.status.update(f"[dim]{_WAIT.get(event.type, 'writing')}[/dim]")

    def _plan(self, plan: Plan, tag: str) -> None:
        if plan.status != "scored":
            self.line("plan", f"{tag}[yellow]none ({plan.status}): the instruction is used as it is[/yellow]")
        for number, step in enumerate(plan.steps, 1):
            self.line("plan" if number == 1 else "", f"{tag}{number}. {say(step)}")
        if plan.explanation:
            self.line("", f"[dim]{say(plan.explanation)}[/dim]")

    def _checklist(self, checklist: Checklist) -> None:
        if checklist.status == "scored":
            n = len(checklist.items)
            self.line("checklist", f"{n} check{'' if n == 1 else 's'} written")
        else:
            self.line("checklist", f"[yellow]none ({checklist.status}): nothing can be verified[/yellow]")

    def _verdict(self, verdict: Verdict) -> None:
        wide = max((len(a.item.question) for a in verdict.answers), default=0)
        for answer in verdict.answers:
            mark, style, word = (
                (self.none, "yellow", answer.status)
                if answer.status != "scored"
                else (self.yes, "green", "yes")
                if answer.yes
                else (self.no, "red", "no")
            )
            p = f"p(yes) {percent(answer.p_yes)}" if answer.p_yes is not None else word
            question = say(answer.item.question)
            pad = " " * (min(wide, 60) - len(answer.item.question))
            about = f"{answer.item.dimension:<7}  {question}{pad}"
            self.line("", f"[{style}]{mark}[/{style}] {about}  [{style}]{p}[/{style}]")
        if verdict.status != "scored":
            self.line("", f"[yellow]not scored ({verdict.status}): {say(verdict.reason)}[/yellow]")

    def _critique(self, critique: Critique, tag: str) -> None:
        if critique.status != "scored":
            self.line("critique", f"{tag}[yellow]none ({critique.status})[/yellow]", "dim")
            return
        scores = (("follows", critique.semantic), ("quality", critique.quality))
        grades = ", ".join(f"{name} {value:g}/10" for name, value in scores if value is not None)
        problem = "nothing to mend" if critique.satisfied else say(critique.problem or "no problem named")
        self.line("critique", f"{tag}{problem}  [dim]{grades}[/dim]", "dim")

    def chosen(self, trace: Trace) -> None:
        """Which round was chosen, and why."""
        selection = trace.selection
        if selection is None:
            self.line("failed", say(trace.error or "no round could be chosen"), "bold red")
            return
        chain = f"chain {selection.chain + 1}, " if len(trace.chains) > 1 else ""
        self.line("chosen", f"{chain}round {selection.round + 1}: {say(selection.reason)}")
