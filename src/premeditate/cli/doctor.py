"""premeditate doctor"""

from __future__ import annotations

from typing import Annotated

import typer

from premeditate.cli.guard import guarded
from premeditate.cli.options import AlsoSpec, AsJson
from premeditate.errors import ExitCode


@guarded
def doctor(
    editor: AlsoSpec = None,
    reasoner: AlsoSpec = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the self-test, which edits one picture.")] = False,
    json_output: AsJson = False,
) -> int:
    """Say what works here, what does not and why, and how to mend it.

    Uses no network, except to ask a server whose address is given. Ends with 0 if the default models work, and those
    that are named; with 5 if not.
    """
    import json
    import time
    from contextlib import nullcontext
    from functools import partial

    from rich.console import Console

    from premeditate import doctor as house
    from premeditate.cli.progress import say

    checks = [
        house.versions, house.torchvision, house.devices, house.weights, house.adapters, house.pipelines, house.extras,
        house.hub, house.surroundings,
    ]  # fmt: skip
    if editor is not None:
        checks.append(partial(house.named, "editor", editor))
    if reasoner is not None:
        checks.append(partial(house.named, "reasoner", reasoner))
    if not quick:
        checks.append(house.self_test)

    console = Console()
    unicode = (console.encoding or "").lower().startswith("utf")
    marks = {
        "works": ("✓" if unicode else "+", "green"),
        "off": ("–" if unicode else "-", "dim"),
        "broken": ("✗" if unicode else "x", "red"),
    }
    began = time.perf_counter()
    found: list[house.Check] = []
    fancy = console.file.isatty() and not console.is_dumb_terminal and not json_output
    with console.status("[dim]looking[/dim]", spinner="dots") if fancy else nullcontext():
        for check in house.examine(checks):
            if not json_output:
                if not found or found[-1].part != check.part:
                    console.print(f"{'' if not found else chr(10)}[bold]{check.part}[/bold]", highlight=False)
                mark, style = marks[check.state]
                line = f"  [{style}]{mark}[/{style}] {say(check.name):<22} {say(check.said)}"
                console.print(line, highlight=False, soft_wrap=True)
                if check.state != "works" and check.mend:
                    console.print(f"    {'':<22} [dim]{say(check.mend)}[/dim]", highlight=False, soft_wrap=True)
            found.append(check)
    works = not any(check.vital and check.state == "broken" for check in found)
    if json_output:
        rows = [vars(check) for check in found]
        print(json.dumps({"works": works, "seconds": round(time.perf_counter() - began, 1), "checks": rows}))
    else:
        broken = sum(check.state == "broken" for check in found)
        word = "[bold green]works[/bold green]" if works else "[bold red]does not work[/bold red]"
        console.print(f"\n{word}   [dim]{broken} of {len(found)} checks found something broken[/dim]", highlight=False)
    return ExitCode.VERIFIED if works else ExitCode.MODEL
