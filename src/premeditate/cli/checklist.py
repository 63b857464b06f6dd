"""premeditate checklist IMAGE INSTRUCTION"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from premeditate.attribute import load_attribute
from premeditate.cli.guard import guarded
from premeditate.cli.options import AsJson, Spec, Timeout
from premeditate.errors import ExitCode, ModelError, PremeditateError

if TYPE_CHECKING:
    from rich.console import Console

    from premeditate.prompts.checklists import Wanted
    from premeditate.reasoners.base import Reasoner
    from premeditate.rewards.checklists.builder import ChecklistBuilder, Subject
    from premeditate.trace import Checklist

Reference = Annotated[
    list[str] | None,
    typer.Option("--reference", metavar="IMAGE", help="A picture that the instruction refers to; may be repeated.",
                 show_default=False),
]  # fmt: skip
Counts = Annotated[
    str,
    typer.Option(metavar="F,K,Q", help="How many questions about what to follow, to keep, and quality: 3-4,3-4,2-3."),
]
Pool = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Examples of your own (YAML) instead of those in the package.", show_default=False
    ),
]
COUNTS = "3-4,3-4,2-3"


@guarded
def checklist(
    image: Annotated[str, typer.Argument(help="The picture that is to be edited.")],
    instruction: Annotated[str, typer.Argument(help="What the edit is to do.")],
    reasoner: Spec = "micro",
    reference: Reference = None,
    counts: Counts = COUNTS,
    pool: Pool = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write, for `premeditate score --checklist`.", show_default=False),
    ] = None,
    timeout: Timeout = None,
    json_output: AsJson = False,
) -> int:
    """Write the yes/no questions that an edit of a picture has to pass, before it is made.

    The file is meant to be read and changed by hand. Reasoners with a language of their own (micro) write their own
    kind of list and take no --counts, --pool or --reference.
    """
    from premeditate import images
    from premeditate.errors import check_instruction
    from premeditate.rewards.checklists.builder import Subject
    from premeditate.rewards.checklists.files import dump_checklist, write_checklist
    from premeditate.rewards.checklists.pool import Pool as Examples

    # Everything that can be found wrong is found wrong before a model is loaded.
    instruction = check_instruction(instruction)
    source = images.load(image)
    references = tuple(images.load(name) for name in reference or ())
    options: dict[str, Any] = {"wanted": read_counts(counts)}
    if pool is not None:
        options["pool"] = Examples.load(pool)
    if output is not None:
        images.check_writable(output)
    told = ["--reference"] * bool(references) + ["--counts"] * (counts != COUNTS) + ["--pool"] * (pool is not None)

    def check(model: Reasoner) -> None:
        check_language(model, told)

    subject = Subject((source,), instruction, references)
    written = with_reasoner(reasoner, [source], timeout, lambda model: _write(model, subject, options, check))
    if written.status != "scored":
        raise not_written(written)
    if output is not None:
        write_checklist(output, written, instruction)
    if json_output:
        print(json.dumps(json.loads(dump_checklist(written, instruction)), ensure_ascii=False))
        return ExitCode.VERIFIED
    from rich.console import Console

    from premeditate.cli.progress import line, say

    console = Console()
    show_checklist(console, written)
    if output is not None:
        line(console, "file", say(str(output)))
    return ExitCode.VERIFIED


async def _write(model: Reasoner, subject: Subject, options: dict[str, Any], check: Any) -> Checklist:
    from premeditate.rewards.checklists.builder import ChecklistBuilder

    check(model)
    builder: ChecklistBuilder = ChecklistBuilder(model, **options)
    (written,) = await builder.write([subject])
    return written


def with_reasoner(spec: str | None, pictures: Sequence[Any], timeout: float | None, work: Any) -> Any:
    """What `work(reasoner)`, a coroutine, gives; the reasoner is loaded, asked whether the pictures are any good to it,
    and closed afterwards. None: there is none."""
    from premeditate import presets
    from premeditate.engine.pool import Policy
    from premeditate.engine.pooled import pooled
    from premeditate.reasoners.base import close

    model: Any = None if spec is None else pooled(presets.load_reasoner(spec), Policy(timeout=timeout))
    for picture in pictures:
        check_picture(spec, model, picture)

    async def run() -> Any:
        try:
            return await work(model)
        finally:
            await close(model)

    return asyncio.run(run())


class _Domain:
    """What a preset says of the pictures that its models know."""

    def __init__(self, where: str) -> None:
        self.check = load_attribute(where)


def check_picture(spec: str | None, model: Any, picture: Any) -> None:
    """Raises `ImageError` for a picture that the model knows nothing about. A tiny reasoner says something about any
    picture, and cannot tell by itself; it was trained on the pictures of the editor that has its name."""
    from premeditate import api, presets

    twin = presets.EDITORS.get(spec or "")
    where = None if twin is None else twin.options.get("domain")
    api.check_source([model, *([_Domain(where)] if isinstance(where, str) else [])], picture)


def check_language(model: Reasoner, told: Sequence[str]) -> None:
    """Raises for options that a reasoner with a checklist language of its own would ignore."""
    from premeditate.prompts import get
    from premeditate.prompts.checklists import takes_examples

    if told and not takes_examples(get(model.prompts)):
        raise PremeditateError(
            f"{model.name} writes its own kind of checklist and takes no {', '.join(told)}",
            "leave that out, or give another --reasoner",
        )


def not_written(found: Checklist) -> ModelError:
    """Why there is no checklist."""
    why = f"; {found.note}" if found.note else ""
    said = " ".join(found.raw.split())[:200]
    return ModelError(f"the checklist is {found.status} ({said or 'nothing was said'}{why})",
                      "try another --reasoner, or write one by hand (docs/verifier.md)")  # fmt: skip


def read_counts(text: str) -> Wanted:
    """ "3-4,3-4,2-3" or "3,3,2" as numbers of each dimension. Raises ValueError for numbers that make no sense too."""
    from premeditate.prompts.general import DIMENSIONS
    from premeditate.rewards.checklists.builder import MOST, check_wanted

    parts = [re.fullmatch(r"\s*(\d{1,3})(?:-(\d{1,3}))?\s*", part) for part in text.split(",")]
    if len(parts) != len(DIMENSIONS) or not all(parts):
        raise PremeditateError(f"--counts {text!r} is not three numbers", f"write follow,keep,quality: {COUNTS}")
    pairs = [(int(found[1]), int(found[2] or found[1])) for found in parts if found]
    try:
        return check_wanted(dict(zip(DIMENSIONS, pairs, strict=True)))
    except PremeditateError:
        raise PremeditateError(
            f"--counts {text!r} are no numbers of questions: at least, at most, up to {MOST} and not all 0",
            f"write {COUNTS}",
        ) from None


def show_checklist(console: Console, found: Checklist) -> None:
    """The questions, one a line, and what is to be said about them."""
    from premeditate.cli.progress import line, say

    for dimension in ("follow", "keep", "quality"):
        for number, item in enumerate([i for i in found.items if i.dimension == dimension]):
            line(console, "" if number else dimension, say(item.question))
    about = f"by {found.author}" + (", changed by hand" if found.edited else "")
    line(console, "written", f"[dim]{say(about)}[/dim]")
    if found.note:
        line(console, "note", f"[yellow]{say(found.note)}[/yellow]")
