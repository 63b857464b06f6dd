"""The exact checker as a verifier: no model is asked."""

from __future__ import annotations

import time
from collections.abc import Sequence

from PIL import Image

from premeditate.microworld.checker import Decoded, NotAScene, answer, decode
from premeditate.microworld.scene import Scene
from premeditate.rewards.base import Sample, verdict_of
from premeditate.trace import Answer, ChecklistItem, Task, Verdict

MEND = ("point --editor and --reasoner at real models, e.g. --editor Qwen/Qwen-Image-Edit-2511 "
        "--reasoner Qwen/Qwen3-VL-8B-Instruct")  # fmt: skip


def require_scene(image: Image.Image) -> None:
    """Raises ValueError, with the mend, unless `image` is a micro-world scene: the tiny models know nothing else."""
    try:
        decode(image)
    except NotAScene as error:
        raise ValueError(f"not a micro-world scene ({error}), and the tiny models know nothing else; {MEND}") from None


class ExactVerifier:
    """Answers a checklist with the exact checker: the true one where the task carries it in `meta["microworld"]`, else
    the written one. A question that it cannot read is "unparsable", a picture that is no scene "unavailable"."""

    name = "exact"
    uses_reasoner = False

    def wants_checklist(self, task: Task) -> bool:
        return _truth(task) is None

    async def verify(self, samples: Sequence[Sample]) -> list[Verdict]:
        return [self.judge(sample) for sample in samples]

    def judge(self, sample: Sample) -> Verdict:
        start = time.perf_counter()
        truth = _truth(sample.task)
        if truth is not None:
            items, source = truth
        elif sample.checklist is None or sample.checklist.status != "scored":
            status = "unavailable" if sample.checklist is None else sample.checklist.status
            return Verdict(status=status, verifier=self.name, reason="there is no checklist that can be read")
        else:
            items, source = sample.checklist.items, None
        try:
            source = source or decode(sample.source).scene
            edit = decode(sample.edit)
        except NotAScene as error:
            return Verdict(status="unavailable", verifier=self.name, reason=f"not a scene: {error}",
                           seconds=time.perf_counter() - start)  # fmt: skip
        answers = [_answer(item, source, edit) for item in items]
        return verdict_of(answers, self.name, time.perf_counter() - start)


def _answer(item: ChecklistItem, source: Scene, edit: Decoded) -> Answer:
    found = answer(item.question, source, edit)
    if found is None:
        return Answer(item=item, status="unparsable", evidence="the exact checker cannot read this question")
    return Answer(item=item, status="scored", yes=found, p_yes=float(found))


def _truth(task: Task) -> tuple[tuple[ChecklistItem, ...], Scene] | None:
    """The true checklist and source scene, where the task carries them."""
    meta = task.meta.get("microworld")
    if not isinstance(meta, dict) or "checklist" not in meta or "source" not in meta:
        return None
    return tuple(ChecklistItem(**item) for item in meta["checklist"]), Scene.from_codes(meta["source"])
