"""What a user names as "module:attribute": a reward, a verifier, an editor, a function that makes rows."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

_FORM = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_attribute(spec: str, *, or_file: bool = False) -> bool:
    """Whether `spec` has that form. `or_file`: where it could be a path too, a file or folder of that name is meant."""
    return _FORM.fullmatch(spec) is not None and not (or_file and Path(spec).exists())


def load_attribute(spec: str) -> Any:
    """What `spec` names. Raises `ImportError` or `AttributeError` where there is none, and whatever importing the
    module raises."""
    module, _, name = spec.partition(":")
    return getattr(import_module(module), name)
