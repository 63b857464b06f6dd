"""Options that several commands have: what a strategy may be told, which models, and what is printed."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Strategy = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="How much to think: direct, plan, reflect, think-while-edit, expert, best-of-n, or best-of-n+NAME.",
    ),
]
Chains = Annotated[
    int | None,
    typer.Option(min=1, max=64, help="Reasoning paths to try side by side [default: 1; best-of-n: 4].",
                 show_default=False),
]  # fmt: skip
First = Annotated[
    Literal["plan", "instruction"], typer.Option(help="What the first edit is made with: a plan, or the instruction.")
]
Refine = Annotated[
    Literal["critic", "original", "last"],
    typer.Option(help="What later edits start from: what the critic says, the original, or the last result."),
]
History = Annotated[bool, typer.Option("--history", help="Show the critic what was wrong with earlier rounds.")]
EarlyStop = Annotated[
    bool, typer.Option("--early-stop/--no-early-stop", help="Let reflect keep a first edit that was verified.")
]
MaxRounds = Annotated[int, typer.Option(min=1, max=64, help="Edits-and-looks per chain, at most.")]
Stepwise = Annotated[bool, typer.Option("--stepwise", help="Carry a plan out one step at a time.")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same machine: same result.")]
Timeout = Annotated[
    float | None,
    typer.Option(min=0.1, help="Seconds for one call of an endpoint [default: the adapter's, 600].",
                 show_default=False),
]  # fmt: skip
SPEC = "Preset, local folder, hub id or address (premeditate models)."
Spec = Annotated[str, typer.Option(metavar="SPEC", help=SPEC)]
AlsoSpec = Annotated[str | None, typer.Option(metavar="SPEC", help=f"Look at this one too. {SPEC}", show_default=False)]
Verifier = Annotated[
    str,
    typer.Option(metavar="SPEC", help='"reasoner", "exact", "none", module:attribute, or another reasoner as judge.'),
]
NoReport = Annotated[bool, typer.Option("--no-report", help="Write no HTML report.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
