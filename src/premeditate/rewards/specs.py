"""How a reward is written on one line, and what it stands for:

exact                  the micro world's exact verifier
preservation           PSNR and SSIM outside the changed region
reasoner:SPEC          a checklist, written and answered by that reasoner (a preset, folder, hub id or address)
viescore:SPEC          that reasoner's scores from 0 to 10; editscore:SPEC, digits:SPEC and editreward:FOLDER are other
                       published judges, options stand in brackets (`premeditate.rewards.judges.table`)
module:attribute       a reward or a verifier, a class or a function without arguments that makes one, or a plain
                       function of samples (`premeditate.rewards.function`)
http://host:port       the rewards of a server (`premeditate rewards serve`); options: `premeditate.rewards.remote`
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from premeditate.address import is_address
from premeditate.attribute import is_attribute, load_attribute
from premeditate.errors import ModelError, one_line
from premeditate.local import nearest
from premeditate.reasoners.base import Reasoner
from premeditate.rewards.base import Reward, Verifier
from premeditate.rewards.checklist import ChecklistVerifier
from premeditate.rewards.function import FunctionReward
from premeditate.rewards.judges.table import NAMES, is_judge, load_judge
from premeditate.rewards.verified import VerifiedReward

REWARDS = {
    "exact": "premeditate.microworld.verifier:ExactVerifier",
    "preservation": "premeditate.rewards.preservation:Preservation",
}
JUDGE = "reasoner:"
LoadReasoner = Callable[[str], Reasoner]


def load_reward(use: str, load_reasoner: LoadReasoner | None = None) -> Reward:
    """The reward that `use` names. `load_reasoner(SPEC)` opens the reasoner of "reasoner:SPEC". Raises `ModelError`."""
    if use.startswith(JUDGE):
        if load_reasoner is None:
            raise ModelError(f"the reward {use!r} needs a reasoner, and nothing here opens one", "pass load_reasoner")
        return VerifiedReward(ChecklistVerifier(load_reasoner(use.removeprefix(JUDGE))), name="checklist")
    if is_address(use):
        from premeditate.rewards.remote import RemoteReward

        return RemoteReward.load(use)
    if is_judge(use):
        return load_judge(use, load_reasoner)
    where = REWARDS.get(use, use)
    if not is_attribute(where):
        close = nearest(use, [*REWARDS, *(f"{name}:SPEC" for name in NAMES)])
        mend = f"use {close}, reasoner:SPEC or module:attribute, or the address of a reward server"
        raise ModelError(f"there is no reward {use!r}", mend)
    try:
        return as_reward(load_attribute(where), use)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the reward {use!r} cannot be loaded ({one_line(error)})",
            "check module:attribute, and that Python finds the module (PYTHONPATH)",
        ) from error


def as_reward(found: Any, what: str = "") -> Reward:
    """A reward as it is, and a verifier, class, maker or plain function made one. Raises `ModelError`, and what a maker
    raises."""
    if isinstance(found, type) or (callable(found) and not isinstance(found, Reward | Verifier) and _is_maker(found)):
        found = found()
    if isinstance(found, Reward):
        return found
    if isinstance(found, Verifier):
        return VerifiedReward(found)
    if callable(found) and not isinstance(found, type):
        return FunctionReward(found)
    raise ModelError(
        f"{what or type(found).__name__} is not a reward",
        "it needs name, dimensions and async score(samples), or is a function of samples",
    )


def _is_maker(function: Callable[..., Any]) -> bool:
    """Whether it takes no samples."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):
        return False
    return not any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)
