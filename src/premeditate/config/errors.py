"""What a recipe that cannot be used raises, and how a value is shown in it."""

from __future__ import annotations

import json
from typing import Any

from premeditate.errors import PremeditateError

Keys = tuple[str | int, ...]
"""Where a value is: names, and indices of lists."""


class ConfigError(PremeditateError):
    """A recipe or an override that cannot be used."""


def dotted(path: Keys) -> str:
    return ".".join(map(str, path))


def show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
