"""A YAML file and dotted overrides, made into a pydantic model. What is wrong is said at once, all of it, by its path.

    steps: 200                      load_config(Recipe, Path("grpo.yaml"), ["optimizer.lr=1e-4", "rewards.0.weight=2"])
    include: base.yaml              another file (or a list of them), beside this one; what stands here goes before it
    optimizer: {lr: 3e-4}

YAML is read by the core schema of YAML 1.2: 1e-4 is a number, and `no`, 1:30 and 2025-01-01 are text.
"""

from __future__ import annotations

from premeditate.config.errors import ConfigError
from premeditate.config.load import dump_config, find_recipe, load_config, load_kind, shipped

__all__ = ["ConfigError", "dump_config", "find_recipe", "load_config", "load_kind", "shipped"]
