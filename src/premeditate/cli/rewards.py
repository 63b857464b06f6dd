"""premeditate rewards serve"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from premeditate.cli.guard import guarded
from premeditate.errors import ModelError

if TYPE_CHECKING:
    from premeditate.reasoners.base import Reasoner
    from premeditate.rewards.panel import Panel

app = typer.Typer(help="Rewards, for other machines.", no_args_is_help=True, rich_markup_mode=None)
KEY = "PREMEDITATE_REWARD_KEY"


@app.callback()
def _root() -> None:
    """Keeps `serve` a subcommand."""


@app.command("serve")
@guarded
def serve(
    uses: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[USE]...", help="Rewards as recipes name them: exact, reasoner:SPEC, module:attribute."
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Serve the rewards of this recipe instead.", show_default=False)
    ] = None,
    host: Annotated[
        str, typer.Option(help=f"Address to listen on; other than this machine's own only with a key in {KEY}.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 8100,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one call of a reward given as USE.")] = 300.0,
    name: Annotated[str, typer.Option(help="What clients call it in their records [default: the reward's name].")] = "",
) -> None:
    """Score edits for other machines: POST /score, GET /health. A recipe there says `use: http://HOST:PORT`."""
    try:
        from premeditate.serving import listening
        from premeditate.serving.door import check_exposure
        from premeditate.serving.rewards import reward_app
        from premeditate.serving.rewards import serve as run
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed; pip install 'premeditate[serve]'") from None
    key = os.environ.get(KEY, "").strip() or None
    # Before models are loaded.
    check_exposure(host, key, KEY)
    sockets = listening.reserve(host, port)

    def ready() -> None:
        typer.echo(f"{', '.join(panel.names)} on http://{host}:{port}" + (" (with a key)" if key else ""), err=True)

    try:
        with _panel(uses or [], recipe, timeout) as panel:
            run(reward_app(panel, key=key, name=name), host, port, key=key, sockets=sockets, ready=ready)
    finally:
        listening.close(sockets)


def _panel(uses: list[str], recipe: Path | None, timeout: float) -> Panel:
    """Raises ValueError for both or none, `ModelError` for two of one name, and what the rewards raise."""
    from premeditate.rewards.panel import Entry, Panel, build_panel
    from premeditate.rewards.specs import load_reward

    if bool(uses) == (recipe is not None):
        raise ValueError("say which rewards: either USE... (for example exact), or --recipe FILE")
    if recipe is None:
        entries = [Entry(load_reward(use, _reasoner), timeout=timeout) for use in uses]
        names = [entry.reward.name for entry in entries]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ModelError(
                f"two rewards are called {twice}",
                "serve each once, or give them names in a recipe (rewards.1.name=...) and serve that: --recipe FILE",
            )
        return Panel(entries)
    from premeditate.config import load_config
    from premeditate.training.recipe import Recipe

    return build_panel(load_config(Recipe, recipe, []).rewards, _reasoner)


def _reasoner(spec: str) -> Reasoner:
    from premeditate import presets
    from premeditate.engine.pooled import pooled

    return pooled(presets.load_reasoner(spec))
