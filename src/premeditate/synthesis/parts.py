"""The models that make the data, by their SPECs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from premeditate import presets
from premeditate.address import shown
from premeditate.editors.base import Editor
from premeditate.editors.callable import CallableEditor
from premeditate.engine.pool import Policy
from premeditate.engine.pooled import pooled
from premeditate.errors import ModelError, one_line
from premeditate.reasoners.base import Reasoner
from premeditate.reasoners.callable import CallableReasoner
from premeditate.rewards.base import Verifier
from premeditate.rewards.checklist import ChecklistVerifier
from premeditate.rewards.checklists.builder import ChecklistBuilder
from premeditate.rewards.specs import load_reward
from premeditate.rewards.verified import VerifiedReward
from premeditate.synthesis.forms import FORMS, Judge
from premeditate.synthesis.settings import JudgeSpec

_ATTRIBUTE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_attribute(spec: str) -> bool:
    """Whether `spec` is "module:attribute" rather than a file or folder."""
    return _ATTRIBUTE.fullmatch(spec) is not None and not Path(spec).exists()


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
        closing = [close() for model in self.models if callable(close := getattr(model, "aclose", None))]
        await asyncio.gather(*closing, return_exceptions=True)


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
    if not is_attribute(spec):
        return pooled(presets.load_editor(spec), policy)
    found = _attribute(spec, "editor")
    if not isinstance(found, type) and isinstance(found, Editor):
        return found
    if callable(found) and not isinstance(found, type):
        return CallableEditor(found, name=spec)
    raise ModelError(
        f"{spec} is no editor", "it needs name and async edit(requests), or is a function of image, prompt"
    )


def load_reasoner(spec: str, policy: Policy | None = None) -> Reasoner:
    """As `load_editor`; a function of a `ChatRequest`."""
    if not is_attribute(spec):
        return pooled(presets.load_reasoner(spec), policy)
    found = _attribute(spec, "reasoner")
    if not isinstance(found, type) and isinstance(found, Reasoner):
        return found
    if callable(found) and not isinstance(found, type):
        return CallableReasoner(found, name=spec)
    raise ModelError(f"{spec} is no reasoner", "it needs name, prompts and async chat(requests), or is a function")


def load_verifier(spec: str, open_reasoner: Any) -> Verifier:
    """The verifier behind a reward (`premeditate.rewards.specs`): it has to answer principles one by one."""
    reward = load_reward(spec, open_reasoner)
    if not isinstance(reward, VerifiedReward):
        raise ModelError(
            f"{spec} does not answer principles", "use exact, reasoner:SPEC or a verifier's module:attribute"
        )
    found = reward.verifier
    return ChecklistVerifier(found.reasoner, explain=True) if isinstance(found, ChecklistVerifier) else found


def _attribute(spec: str, what: str) -> Any:
    module, _, name = spec.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        mend = "check module:attribute, and that Python finds the module (PYTHONPATH)"
        raise ModelError(f"the {what} {spec} cannot be loaded ({one_line(error)})", mend) from error
