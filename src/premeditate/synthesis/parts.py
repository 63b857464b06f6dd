"""The models that make the data, by their SPECs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from premeditate import presets
from premeditate.address import shown
from premeditate.attribute import is_attribute, load_attribute
from premeditate.editors.base import Editor
from premeditate.editors.callable import CallableEditor
from premeditate.engine.pool import Policy
from premeditate.engine.pooled import pooled
from premeditate.errors import ModelError, one_line
from premeditate.reasoners.base import Reasoner, close
from premeditate.reasoners.callable import CallableReasoner
from premeditate.rewards.base import Verifier
from premeditate.rewards.checklist import ChecklistVerifier
from premeditate.rewards.checklists.builder import ChecklistBuilder
from premeditate.rewards.specs import load_reward
from premeditate.rewards.verified import VerifiedReward
from premeditate.synthesis.forms import FORMS, Judge
from premeditate.synthesis.settings import JudgeSpec


@dataclass(frozen=True)
class Parts:
    """`editors`: by the name that stands in the data. `builder`: writes principles, None: nobody does."""

    editors: dict[str, Editor]
    judges: tuple[Judge, ...]
    verifier: Verifier
    builder: ChecklistBuilder | None = None

    @property
    def models(self) -> list[Any]:
        """Everything that is asked, each once."""
        asked = [*self.editors.values(), *(judge.reasoner for judge in self.judges),
                 getattr(self.verifier, "reasoner", None), getattr(self.builder, "reasoner", None)]  # fmt: skip
        return list({id(model): model for model in asked if model is not None}.values())

    def names(self) -> dict[str, str]:
        """What the models call themselves, which endpoints know once they were asked."""
        found = {f"editor {name}": editor.name for name, editor in self.editors.items()}
        found |= {f"judge {judge.name}": judge.reasoner.name for judge in self.judges}
        found["verifier"] = self.verifier.name
        if self.builder is not None:
            found["principles"] = self.builder.reasoner.name
        return found

    async def prepare(self) -> None:
        """Asks endpoints how they are. Raises `EndpointError` where one model is not to be had."""
        for model in self.models:
            if callable(prepare := getattr(model, "prepare", None)):
                await prepare()

    def in_flight(self) -> int:
        """Calls under way at endpoints."""
        return sum(
            load.in_flight for m in self.models if callable(loads := getattr(m, "loads", None)) for load in loads()
        )

    async def aclose(self) -> None:
        await asyncio.gather(*map(close, self.models), return_exceptions=True)


def load(
    editors: Sequence[str], judges: Sequence[JudgeSpec], temperatures: Sequence[float], verifier: str,
    reasoner: str | None, policy: Policy | None = None,
) -> Parts:  # fmt: skip
    """Raises `ModelError` for what cannot be loaded."""
    reasoners: dict[str, Reasoner] = {}

    def open_reasoner(spec: str) -> Reasoner:
        if spec not in reasoners:  # one queue for each set of endpoints, whoever asks
            reasoners[spec] = load_reasoner(spec, policy)
        return reasoners[spec]

    return Parts(
        {shown(spec): load_editor(spec, policy) for spec in editors},
        tuple(FORMS[judge.form](open_reasoner(judge.spec), temperatures, judge.name) for judge in judges),
        load_verifier(verifier, open_reasoner),
        None if reasoner is None else ChecklistBuilder(open_reasoner(reasoner)),
    )


def load_editor(spec: str, policy: Policy | None = None) -> Editor:
    """A preset, folder, hub id or address, or "module:attribute": an editor, or a function of (image, prompt, seed)."""
    if not is_attribute(spec, or_file=True):
        return pooled(presets.load_editor(spec), policy)
    needs = "it needs name and async edit(requests), or is a function of image, prompt"
    return _own(spec, "editor", Editor, CallableEditor, needs)


def load_reasoner(spec: str, policy: Policy | None = None) -> Reasoner:
    """As `load_editor`; a function of a `ChatRequest`."""
    if not is_attribute(spec, or_file=True):
        return pooled(presets.load_reasoner(spec), policy)
    needs = "it needs name, prompts and async chat(requests), or is a function"
    return _own(spec, "reasoner", Reasoner, CallableReasoner, needs)


def load_verifier(spec: str, open_reasoner: Any) -> Verifier:
    """The verifier behind a reward (`premeditate.rewards.specs`): it has to answer principles one by one."""
    reward = load_reward(spec, open_reasoner)
    if not isinstance(reward, VerifiedReward):
        raise ModelError(
            f"{spec} does not answer principles", "use exact, reasoner:SPEC or a verifier's module:attribute"
        )
    found = reward.verifier
    return ChecklistVerifier(found.reasoner, explain=True) if isinstance(found, ChecklistVerifier) else found


def _own(spec: str, what: str, protocol: type, wrap: Callable[..., Any], needs: str) -> Any:
    """What the "module:attribute" `spec` names: of the `protocol`, or a function that `wrap` makes one of."""
    try:
        found = load_attribute(spec)
    except (ImportError, AttributeError) as error:
        mend = "check module:attribute, and that Python finds the module (PYTHONPATH)"
        raise ModelError(f"the {what} {spec} cannot be loaded ({one_line(error)})", mend) from error
    if isinstance(found, type) or not (isinstance(found, protocol) or callable(found)):
        raise ModelError(f"{spec} is no {what}", needs)
    return found if isinstance(found, protocol) else wrap(found, name=spec)
