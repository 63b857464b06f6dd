"""Trains a judge on preferred pairs with GCPO: puts a recipe's model and pairs on the training core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from premeditate.datasets.preferences import Pair, PairPaths
from premeditate.reasoners.transformers import TransformersReasoner
from premeditate.rewards.panel import Entry, Panel
from premeditate.training.checkpoint import newest
from premeditate.training.distributed import World
from premeditate.training.errors import TrainingError
from premeditate.training.loop import Parts
from premeditate.training.lora import make_trainable, merged
from premeditate.training.run import TASKS, WEIGHTS, Built, OnFigures, Say, run
from premeditate.training.tokens import export
from premeditate.training.tokens.base import LANGUAGE, Base, load_base, resolve
from premeditate.training.tokens.model import TokenModel
from premeditate.training.verifier.pairs import Comparison, Principles, digest, load
from premeditate.training.verifier.policy import PairPolicy
from premeditate.training.verifier.principles import principles
from premeditate.training.verifier.recipe import VerifierRecipe
from premeditate.training.verifier.rewards import Ordered, Stated
from premeditate.training.weights import fingerprint


def train_gcpo(
    recipe: VerifierRecipe, *, resume: bool = False, say: Say | None = None, on_figures: OnFigures | None = None
) -> dict[str, Any]:
    """Runs `recipe` to its last step and exports the judge into recipe.out/export. Arguments, result and errors as of
    `premeditate.training.editor.train`; held-out figures are pairs.accuracy, pairs.ties_half and pairs.margin."""

    def build(world: World, tell: Say, stack: ExitStack) -> Built:
        train, held_out = _pairs(recipe, world, tell)
        data = digest(train)
        if len(set(world.gather(data))) > 1:  # a row's number is to mean the same pair everywhere
            raise TrainingError("the processes do not read the same pairs", "give all of them the same data.train")
        panel = stack.enter_context(Panel([Entry(Stated())]))
        judge = stack.enter_context(Panel([Entry(Ordered())]))
        base = load_base(recipe.model)
        before = fingerprint({"model": base.model})
        policy = PairPolicy(recipe, trainable(base, recipe), train, held_out)
        made_of = {WEIGHTS: before, TASKS: data}

        def finish(folder: Path, values: Mapping[str, Any], card: Mapping[str, Any]) -> None:
            _export(recipe, base, folder, values, card)

        return Built(Parts(policy, panel, judge, len(train), len(held_out), made_of), finish)

    half = recipe.model.dtype != "float32"
    return run(recipe, build, device=recipe.model.device, half=half, resume=resume, say=say, on_figures=on_figures)


def trainable(base: Base, recipe: VerifierRecipe) -> TokenModel:
    """The model with what is trained of it, and what it was where the objective asks for that."""
    reasoner = TransformersReasoner(base.model, base.processor, name=recipe.model.base, prompts=base.prompts)
    reference = recipe.algorithm.needs_reference
    frozen = make_trainable(base.model, recipe.model.lora, seed=recipe.seed, reference=reference, within=LANGUAGE)
    if recipe.model.gradient_checkpointing:
        base.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    # Under LoRA the base is held in what forwards calculate in; else everything is held in float32.
    half = recipe.model.lora is None and recipe.model.dtype == "bfloat16"
    return TokenModel(reasoner, frozen, torch.bfloat16 if half else None)


def _pairs(recipe: VerifierRecipe, world: World, say: Say) -> tuple[list[Comparison], list[Comparison]]:
    out = Path(recipe.out)

    def write(rows: Sequence[Pair | PairPaths]) -> list[Principles | str]:
        return principles(rows, recipe.data, out, world, say, resumed=newest(out) is not None)

    return load(recipe.data, None if recipe.data.checklists is None else write, say)


def _export(
    recipe: VerifierRecipe, base: Base, folder: Path, values: Mapping[str, Any], card: Mapping[str, Any]
) -> None:
    """The whole model with `values` in their places, adapters added in."""
    network = base.model
    network.load_state_dict(dict(values), strict=False)
    with merged(network):
        own = {name: value for name, value in network.state_dict().items() if "lora_" not in name}
        state = {name.replace(".base_layer.", "."): value for name, value in own.items()}
    fresh = load_base(recipe.model)
    fresh.model.load_state_dict(state)
    said = export.Card(
        recipe.model.base, resolve(recipe.model.base), recipe.judging.mode, card["recipe"],
        f"{card['tasks']} preferred pairs", card["data"], card["evaluations"], "GCPO, arXiv 2604.27505",
    )  # fmt: skip
    export.write(folder, fresh.model, fresh.processor, fresh.sidecar, fresh.stored, said)
