"""What can be trained, by the `kind` of its recipe: an editor, a judge's cold start, a judge on preferred pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from premeditate.attribute import load_attribute
from premeditate.training.recipe import Recipe
from premeditate.training.sft.recipe import SftRecipe
from premeditate.training.verifier.recipe import VerifierRecipe

AnyRecipe = Recipe | SftRecipe | VerifierRecipe
EDITOR = "editor"
RECIPES: dict[str, type[Any]] = {EDITOR: Recipe, "sft": SftRecipe, "gcpo": VerifierRecipe}
_TRAINERS = {
    EDITOR: "premeditate.training.editor:train",
    "sft": "premeditate.training.sft.run:train_sft",
    "gcpo": "premeditate.training.verifier.run:train_gcpo",
}


def trainer(recipe: AnyRecipe) -> Callable[..., dict[str, Any]]:
    """What runs `recipe`: (recipe, *, resume, say, on_figures) -> {"out", "export", "steps", "before", "after", ...}.
    Its libraries are imported here and not before."""
    found: Callable[..., dict[str, Any]] = load_attribute(_TRAINERS[recipe.kind])
    return found
