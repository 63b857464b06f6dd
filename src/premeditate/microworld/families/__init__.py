"""All families of instructions, by kind. Each file holds one kind."""

from premeditate.microworld.families import causal, explicit, logical, procedural, spatial, temporal
from premeditate.microworld.families.base import KINDS, Draft, Family

FAMILIES: tuple[Family, ...] = (
    *explicit.FAMILIES,
    *temporal.FAMILIES,
    *causal.FAMILIES,
    *spatial.FAMILIES,
    *logical.FAMILIES,
    *procedural.FAMILIES,
)
TRAINED = tuple(family for family in FAMILIES if not family.held_out)
UNSEEN = tuple(family for family in FAMILIES if family.held_out)

__all__ = ["FAMILIES", "KINDS", "TRAINED", "UNSEEN", "Draft", "Family"]
