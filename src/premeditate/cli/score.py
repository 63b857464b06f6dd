"""premeditate score SOURCE EDIT INSTRUCTION"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from premeditate.cli import checklist as writing
from premeditate.cli.guard import guarded
from premeditate.cli.options import AsJson, Spec, Timeout, Verifier
from premeditate.errors import ExitCode, PremeditateError, printable

if TYPE_CHECKING:
    from PIL import Image

    from premeditate.reasoners.base import Reasoner
    from premeditate.rewards.base import Sample
    from premeditate.rewards.checklists.canary import Canary
    from premeditate.rewards.checklists.files import Filed
    from premeditate.trace import Checklist, Verdict

EQUAL = "the edit is the same picture as the source, pixel for pixel"


@dataclass
class Outcome:
    """`canary`: None where none was asked for. `notes`: what a reader should know beside the scores."""

    verdict: Verdict
    checklist: Checklist | None
    canary: Canary | None = None
    notes: list[str] = field(default_factory=list)


@guarded
def score(
    source: Annotated[str, typer.Argument(help="The picture before the edit.")],
    edit: Annotated[str, typer.Argument(help="The picture after the edit.")],
    instruction: Annotated[str, typer.Argument(help="What the edit was to do.")],
    reasoner: Spec = "micro",
    verifier: Verifier = "reasoner",
    checklist: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A checklist that was written before, perhaps changed by hand.", show_default=False
        ),
    ] = None,
    votes: Annotated[
        int | None,
        typer.Option(
            "-k",
            "--votes",
            min=1,
            max=100,
            help="Answers to draw where there are no probabilities [default: 1].",
            show_default=False,
        ),
    ] = None,
    canary: Annotated[
        bool, typer.Option("--canary", help="Leave out what the judge says of the unedited picture as well.")
    ] = False,
    explain: Annotated[
        bool | None,
        typer.Option(
            "--explain/--no-explain",
            help="Have the judge say what it saw, where it speaks [default: explain].",
            show_default=False,
        ),
    ] = None,
    timeout: Timeout = None,
    json_output: AsJson = False,
) -> int:
    """Judge an edit that is there already: its checklist, an answer with its evidence for each question, and scores.

    Ends with 0 if every question was answered with yes, with 1 if some answer is no, and with 5 if the edit could not
    be judged as a whole.
    """
    from premeditate import images
    from premeditate.errors import check_instruction
    from premeditate.rewards.checklists.files import read_checklist

    instruction = check_instruction(instruction)
    pictures = images.load(source), images.load(edit)
    if verifier == "none":
        raise PremeditateError("without a verifier there is nothing to score", "leave --verifier out, or name one")
    filed = None if checklist is None else read_checklist(checklist)
    told = {"-k": votes is not None, "--canary": canary, "--explain": explain is True, "--no-explain": explain is False}
    judge = {"k": votes or 1, "canary": canary, "explain": explain is not False}
    # Who neither writes nor answers is not loaded.
    outcome = writing.with_reasoner(
        reasoner if verifier == "reasoner" or filed is None else None, pictures[:1], timeout,
        lambda model: _score(model, pictures, instruction, verifier, filed, judge, timeout,
                             [name for name, given in told.items() if given]),
    )  # fmt: skip
    verdict = outcome.verdict
    code = ExitCode.MODEL
    if verdict.status == "scored":
        code = ExitCode.VERIFIED if verdict.passed else ExitCode.NOT_VERIFIED
    if json_output:
        print(json.dumps(summary(outcome, int(code)), ensure_ascii=False))
    else:
        _show(outcome)
    if code == ExitCode.MODEL:
        mend = "the answers above say which question it was; try again, or another --verifier"
        typer.echo(f"premeditate: {printable(_why(verdict))}; {mend}", err=True)
    return code


async def _score(
    model: Reasoner | None, pictures: tuple[Image.Image, Image.Image], instruction: str, spec: str, filed: Filed | None,
    options: dict[str, Any], timeout: float | None, told: Sequence[str],
) -> Outcome:  # fmt: skip
    """`told`: names of those of the options that were given."""
    from premeditate import api
    from premeditate.engine.pool import Policy
    from premeditate.reasoners.base import close
    from premeditate.rewards.base import Sample
    from premeditate.rewards.checklist import ChecklistVerifier
    from premeditate.trace import Task

    judge = api.load_verifier(spec, cast("Reasoner", model), Policy(timeout=timeout))
    assert judge is not None
    if isinstance(judge, ChecklistVerifier):
        judge = ChecklistVerifier(judge.reasoner, **options)
        writing.check_picture(None if spec == "reasoner" else spec, judge.reasoner, pictures[0])
    elif told:
        raise PremeditateError(
            f"the verifier {spec} takes no {', '.join(told)}", "leave that out, or name a reasoner as judge"
        )
    notes = _notes(pictures, instruction, filed)
    task = Task(id="score", images=(), instruction=instruction)
    try:
        written = None if filed is None else filed.checklist
        if written is None and judge.wants_checklist(task):
            assert model is not None
            written = await _written(model, pictures[0], instruction)
        sample = Sample(task, *pictures, written)
        (verdict,) = await judge.verify([sample])
        found = None
        if isinstance(judge, ChecklistVerifier) and options["canary"]:
            found = await _canary(judge, sample, notes)
        return Outcome(verdict, written, found, notes)
    finally:
        if (asked := getattr(judge, "reasoner", model)) is not model:
            await close(asked)


async def _written(model: Reasoner, source: Image.Image, instruction: str) -> Checklist:
    from premeditate.rewards.checklists.builder import ChecklistBuilder, Subject

    (written,) = await ChecklistBuilder(model).write([Subject((source,), instruction)])
    if written.status != "scored":
        raise writing.not_written(written)
    return written


async def _canary(judge: Any, sample: Sample, notes: list[str]) -> Canary:
    """What the judge said of the source: it is remembered from the verdict, and not asked for again."""
    (found,) = await judge.canaries([sample])
    if not judge.controls(sample):
        notes.append("no control question about the edit: this judge has none, or the picture is nearly of one colour")
    return found


def _notes(pictures: tuple[Image.Image, Image.Image], instruction: str, filed: Filed | None) -> list[str]:
    before, after = pictures
    notes = []
    if before.size == after.size and before.tobytes() == after.tobytes():
        notes.append(EQUAL)
    elif before.size != after.size:
        notes.append(f"the edit is {after.width} x {after.height} pixels, the source {before.width} x {before.height}")
    if filed is not None and filed.instruction and filed.instruction != instruction:
        notes.append(f"the checklist was written for another instruction: {filed.instruction[:200]}")
    return notes


def _why(verdict: Verdict) -> str:
    return f"the edit is not scored ({verdict.status}: {verdict.reason or 'the judge gave no reason'})"


def summary(outcome: Outcome, code: int) -> dict[str, Any]:
    """What `--json` prints. A dimension that was not scored is absent from `scores` and `weighted`."""
    verdict, checklist, canary = outcome.verdict, outcome.checklist, outcome.canary
    return {
        "verified": verdict.passed,
        "status": verdict.status,
        "reason": verdict.reason,
        "scores": verdict.scores,
        "weighted": verdict.weighted,
        "answers": [
            {"question": a.item.question, "dimension": a.item.dimension, "status": a.status, "yes": a.yes,
             "p_yes": a.p_yes, "evidence": a.evidence}
            for a in verdict.answers
        ],
        "checklist": None if checklist is None else {
            "author": checklist.author, "edited": checklist.edited, "note": checklist.note,
            "items": [item.model_dump() for item in checklist.items],
        },
        "canary": None if canary is None else {
            "suspicious": canary.suspicious, "contradicted": canary.contradicted,
            "items": [{"question": t.answer.item.question, "yes": t.answer.yes, "exposed": t.exposed}
                      for t in canary.items],
        },
        "equal": EQUAL in outcome.notes,
        "notes": outcome.notes,
        "verifier": verdict.verifier,
        "seconds": round(verdict.seconds, 3),
        "tokens": verdict.tokens,
        "exit_code": code,
        **({} if verdict.status == "scored" else {"error": _why(verdict)}),
    }  # fmt: skip


def _show(outcome: Outcome) -> None:
    from rich.console import Console

    from premeditate.cli.progress import LABEL, Progress, line, say
    from premeditate.viewer.report import percent

    console = Console()
    verdict, checklist, canary = outcome.verdict, outcome.checklist, outcome.canary
    marks = Progress(console)
    for answer in verdict.answers:
        mark, style, word = (
            (marks.none, "yellow", answer.status) if answer.status != "scored"
            else (marks.yes, "green", "yes") if answer.yes else (marks.no, "red", "no")
        )  # fmt: skip
        p = "" if answer.p_yes is None else f", p(yes) {percent(answer.p_yes)}"
        question = f"{answer.item.dimension:<7}  {say(answer.item.question)}"
        line(console, "", f"[{style}]{mark}[/{style}] {question}  [{style}]{word}{p}[/{style}]")
        if answer.evidence:
            console.print(f"{'':<{LABEL + 11}}[dim]{say(answer.evidence)}[/dim]", soft_wrap=True, highlight=False)
    for number, (dimension, share) in enumerate(verdict.scores.items()):
        weighted = verdict.weighted.get(dimension)
        more = "" if weighted is None else f"  [dim]weighted {percent(weighted)}[/dim]"
        line(console, "" if number else "scores", f"{dimension:<7}  {percent(share)}{more}")
    if checklist is not None:
        about = f"{len(checklist.items)} questions by {checklist.author}"
        line(console, "checklist", f"[dim]{say(about)}{', changed by hand' if checklist.edited else ''}[/dim]")
        if checklist.note:
            line(console, "", f"[yellow]{say(checklist.note)}[/yellow]")
    if canary is not None:
        said = [f"{percent(share)} of {what}" for share, what in (
            (canary.suspicious, "follow questions say yes"), (canary.contradicted, "keep questions say no"),
        ) if share is not None]  # fmt: skip
        line(console, "canary", f"unedited picture: {', '.join(said) or 'no answer'}")
    for note in outcome.notes:
        line(console, "note", f"[yellow]{say(note)}[/yellow]")
    if verdict.status != "scored":
        word = f"[bold yellow]not scored[/bold yellow]  {say(verdict.reason)}"
    else:
        word = "[bold green]all yes[/bold green]" if verdict.passed else "[bold yellow]not all yes[/bold yellow]"
    console.print(word, highlight=False, soft_wrap=True)
