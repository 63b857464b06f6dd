"""premeditate train RECIPE --dry-run: what a run would do, and what it costs."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from premeditate.training.kinds import AnyRecipe
    from premeditate.training.recipe import Recipe


def show(recipe: AnyRecipe, devices: int, json_output: bool) -> None:
    """Prints the recipe with its defaults, how its batches lie on the devices and, of an editor, work and memory."""
    from premeditate.training.recipe import Recipe

    if isinstance(recipe, Recipe):
        _editor(recipe, devices, json_output)
        return
    from premeditate.config import dump_config

    parts = _parts(recipe, devices)
    if json_output:
        found = {"recipe": recipe.model_dump(mode="json"), "devices": devices, "geometry": dict(parts)}
        print(json.dumps(found, ensure_ascii=False))
        return
    print(dump_config(recipe))
    _section("geometry", [(name.replace("_", " "), str(value)) for name, value in parts])


def _parts(recipe: Any, devices: int) -> list[tuple[str, Any]]:
    """Of a judge's training."""
    from premeditate.training.geometry import Geometry
    from premeditate.training.sft.recipe import SftRecipe, portions

    if isinstance(recipe, SftRecipe):
        forward, count = portions(recipe.batch, devices)
        return [("samples_a_step", recipe.batch.size), ("devices", devices), ("samples_a_forward", forward),
                ("forwards_a_step", count)]  # fmt: skip
    geometry = Geometry.of(recipe, devices)
    return [("pairs_a_step", geometry.groups), ("traces_of_each_edit", geometry.group_size // 2),
            ("traces_a_step", geometry.samples), ("devices", devices), ("updates", geometry.updates),
            ("forwards_of_an_update", geometry.accumulation), ("traces_a_forward", geometry.microbatch)]  # fmt: skip


def _editor(recipe: Recipe, devices: int, json_output: bool) -> None:
    from rich.console import Console

    from premeditate.config import dump_config
    from premeditate.errors import ModelError
    from premeditate.local import quiet
    from premeditate.training.geometry import Geometry, forwards, windows

    geometry, chosen = Geometry.of(recipe, devices), list(dict.fromkeys(windows(recipe)))
    console = Console(stderr=True)
    waiting = console.is_terminal and not json_output
    unknown, memory, passes = "", None, 1
    with console.status("[dim]counting[/dim]") if waiting else nullcontext():
        with quiet("diffusers", "transformers", loading=True):
            from premeditate.training.flow import memory as estimator
            from premeditate.training.flow.published import describe

            try:
                architecture = describe(recipe.model.base)
                memory = estimator.estimate(recipe, devices=devices, architecture=architecture)
                passes = estimator.passes(recipe, architecture)
            except ModelError as error:
                unknown = str(error)
    work = forwards(recipe, passes=passes)
    flops = None if memory is None else memory.flops * work.total
    if json_output:
        found = {
            "recipe": recipe.model_dump(mode="json"), "devices": devices, "windows": chosen,
            "geometry": {**vars(geometry), "accumulation": geometry.accumulation, "microbatch": geometry.microbatch},
            "forwards": {**work.phases, "total": work.total, "plain_loop": dict(work.peer), "ratio": work.ratio()},
            "memory": None if memory is None else estimator.as_json(memory), "flops": flops, "unknown": unknown or None,
        }  # fmt: skip
        print(json.dumps(found, ensure_ascii=False))
        return
    print(dump_config(recipe))
    _section("geometry", geometry.table())
    _section("windows", [("steps", _windows(chosen, recipe))])
    extra = [] if flops is None else [("work", f"{estimator.big(flops)}FLOP a step, all devices together")]
    _section("forwards of a step, in samples (a backward counts as two)", [*work.table(), *extra])
    if memory is None:
        _section("memory", [("not known", unknown)])
    else:
        _section("memory of a device, estimated", memory.table())


def _section(title: str, rows: list[tuple[str, str]]) -> None:
    wide = max(len(label) for label, _ in rows)
    print(f"# {title}", *(f"#   {label:<{wide}}  {text}" for label, text in rows), "", sep="\n")


def _windows(chosen: list[tuple[int, ...]], recipe: Recipe) -> str:
    if chosen == [()]:
        return f"none: {recipe.algorithm.name} samples with the ODE, {recipe.rollout.steps} steps"
    several = ", ".join("-".join(map(str, dict.fromkeys((w[0], w[-1])))) for w in chosen[:8])
    more = f" and {len(chosen) - 8} more" if len(chosen) > 8 else ""
    return f"{several}{more} of 0-{recipe.rollout.steps - 1} are stochastic and trained"
