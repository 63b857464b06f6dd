"""Premeditate: image editing that thinks before it acts, looks at the result, and keeps the record.

    import premeditate
    result = premeditate.edit("photo.png", "paint the odd one out green")
    result.image, result.verified, result.trace

The names below are imported when first used, so that `import premeditate` costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for true; importing `typing` for it would cost most of this import
if TYPE_CHECKING:
    from typing import Any

    from premeditate.api import Result as Result
    from premeditate.api import edit as edit
    from premeditate.api import edit_async as edit_async
    from premeditate.errors import PremeditateError as PremeditateError
    from premeditate.store import RunStore as RunStore
    from premeditate.trace import Task as Task
    from premeditate.trace import Trace as Trace

__version__ = "0.1.0"

_HOMES = {
    "edit": "premeditate.api",
    "edit_async": "premeditate.api",
    "Result": "premeditate.api",
    "PremeditateError": "premeditate.errors",
    "RunStore": "premeditate.store",
    "Task": "premeditate.trace",
    "Trace": "premeditate.trace",
}
__all__ = ["PremeditateError", "Result", "RunStore", "Task", "Trace", "__version__", "edit", "edit_async"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
