"""Adapters of flow editors, by the class of their diffusers pipeline, and what loads one."""

from __future__ import annotations

from premeditate.training.adapters.base import Batch, FlowAdapter
from premeditate.training.adapters.kontext import KontextAdapter

ADAPTERS: dict[str, type[FlowAdapter]] = {kind.pipeline_class: kind for kind in (KontextAdapter,)}

__all__ = ["ADAPTERS", "Batch", "FlowAdapter", "KontextAdapter"]
