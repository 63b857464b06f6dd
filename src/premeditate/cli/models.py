"""premeditate models"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from premeditate.cli.guard import guarded
from premeditate.cli.options import AsJson

if TYPE_CHECKING:
    from premeditate.machine import Device
    from premeditate.presets import Preset

COLUMNS = ("what", "size", "memory", "licence", "weights", "fits")
WIDE = 130
"""Characters that a terminal needs for all columns."""


@guarded
def models(
    json_output: AsJson = False,
) -> None:
    """List the models that have a name here: what they are, where their weights are, and whether they fit this machine.

    Any other model is named by its folder, its hub id org/name, or an address: http://host:port/v1#model. Memory is an
    estimate for a GPU with all parts resident, in bfloat16.
    """
    import json

    from premeditate import machine, presets

    found = machine.devices()
    tables = {"editors": presets.EDITORS, "reasoners": presets.REASONERS}
    rows = {kind: [describe(name, preset, found) for name, preset in known.items()] for kind, known in tables.items()}
    if json_output:
        print(json.dumps({**rows, "devices": [vars(device) for device in found]}))
        return
    from rich.console import Console
    from rich.table import Table

    from premeditate.cli.progress import say

    console = Console()
    wide = console.width >= WIDE
    columns = [c for c in COLUMNS if wide or c not in ("what", "weights")]
    for kind, listed in rows.items():
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column(kind, style="bold", no_wrap=True, min_width=max(len(row["name"]) for row in listed))
        for column in columns:
            table.add_column(column, justify="right" if column in ("size", "memory") else "left")
        for row in listed:
            style = {True: "green", False: "red", None: "dim"}[row["fits"]]
            cells = {
                "what": say(row["what"]), "size": amount(row["size_gb"]), "memory": amount(row["memory_gb"]),
                "licence": say(row["licence"]), "weights": say(row["weights"]),
                "fits": f"[{style}]{say(row['fits_how'])}[/{style}]",
            }  # fmt: skip
            table.add_row(say(row["name"]), *(cells[column] for column in columns))
        console.print(table)
        console.print()
    here = "; ".join(f"{device.name}: {device.what}, {amount(device.memory_gb)}" for device in found)
    for label, text in (
        ("this machine", here),
        ("others", "a folder, a hub id org/name, or the address of a server: http://host:port/v1#model"),
    ):
        console.print(f"[dim]{label:<14}{say(text)}[/dim]", highlight=False, soft_wrap=True)


def describe(name: str, preset: Preset, found: list[Device]) -> dict[str, Any]:
    """A preset as plain JSON values. `fits`: None where that is not known."""
    from premeditate import machine

    fits, how = machine.fits(preset.memory_gb, found)
    return {
        "name": name,
        "what": preset.about,
        "spec": preset.spec,
        "size_gb": preset.size_gb,
        "memory_gb": preset.memory_gb,
        "licence": preset.licence,
        "source": preset.source,
        "weights": machine.where(preset.spec, preset.size_gb),
        "fits": fits,
        "fits_how": how,
    }


def amount(gb: float | None) -> str:
    """10^9 bytes in words."""
    if gb is None:
        return "?"
    return f"{gb * 1e3:.3g} MB" if gb < 1 else f"{gb:.3g} GB"
