"""How a recipe names a judge: `NAME:SPEC` or `NAME[option=value,...]:SPEC`.

viescore, editscore, digits, rrm    SPEC is the reasoner's
editreward                          SPEC is a folder

    viescore:https://host:8000/v1
    viescore[dimensions=follow+keep+quality]:org/model
    editscore[k=8,reduction=average_first]:org/model
    digits[least_mass=0.8]:org/model
    rrm[mode=verify,dimensions=follow+keep]:org/model
    editreward:/models/editreward
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from premeditate.errors import ModelError, one_line
from premeditate.local import check_options
from premeditate.reasoners.base import Reasoner
from premeditate.rewards.base import Reward
from premeditate.rewards.judges.digits import DigitScore
from premeditate.rewards.judges.editscore import EditScore
from premeditate.rewards.judges.rrm import RRM
from premeditate.rewards.judges.viescore import VIEScore


def _parts(text: str) -> tuple[str, ...]:
    return tuple(text.split("+"))


_COMMON: dict[str, Callable[[str], Any]] = {
    "k": int, "seed": int, "least": int, "temperature": float, "dimensions": _parts, "name": str,
}  # fmt: skip
ASKING: dict[str, tuple[Callable[..., Reward], dict[str, Callable[[str], Any]]]] = {
    "viescore": (VIEScore, {**_COMMON, "top": int}),
    "editscore": (EditScore, {**_COMMON, "score_range": int, "reduction": str}),
    "digits": (DigitScore, {"least_mass": float, "name": str}),
    "rrm": (RRM, {**_COMMON, "mode": str}),
}
"""Judges that ask a reasoner, and how their options are read."""
HEADS: dict[str, Callable[[str], Any]] = {"device": str, "dtype": str, "max_batch": int, "scale": str, "name": str}
NAMES: tuple[str, ...] = (*ASKING, "editreward")
_USE = re.compile(rf"({'|'.join(NAMES)})(?:\[([^\[\]]*)\])?:(.*)", re.DOTALL)


def is_judge(use: str) -> bool:
    return _USE.fullmatch(use) is not None


def load_judge(use: str, load_reasoner: Callable[[str], Reasoner] | None = None) -> Reward:
    """The judge that `use` names. `load_reasoner(SPEC)` opens the reasoner of those that ask one. Raises
    `ModelError`."""
    match = _USE.fullmatch(use)
    if match is None:
        raise ModelError(f"{use!r} names no judge", f"use NAME:SPEC with one of {', '.join(NAMES)}")
    name, said, spec = match[1], match[2] or "", match[3].strip()
    if not spec:
        what = "folder" if name == "editreward" else "reasoner"
        raise ModelError(f"the reward {use!r} names no {what}", f"write {name}:{what.upper()}")
    if name == "editreward":
        from premeditate.rewards.judges.editreward import EditReward

        return EditReward.load(Path(spec), **_options(use, said, HEADS))
    make, readers = ASKING[name]
    options = _options(use, said, readers)
    if load_reasoner is None:
        raise ModelError(f"the reward {use!r} needs a reasoner, and nothing here opens one", "pass load_reasoner")
    reasoner = load_reasoner(spec)
    try:
        return make(reasoner, **options)
    except ModelError:
        raise
    except ValueError as error:
        raise ModelError(f"the reward {use!r} cannot be made", one_line(error, ValueError)) from None


def _options(use: str, said: str, readers: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in said.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key in found:
            raise ModelError(f"the reward {use!r} has the option {part!r}", "write option=value, each once")
        check_options({key: value}, tuple(readers), f"the reward {use.partition('[')[0]}")
        try:
            found[key] = readers[key](value)
        except ValueError:
            raise ModelError(f"the reward {use!r} has the option {part!r}", f"give {key} a number") from None
    return found
