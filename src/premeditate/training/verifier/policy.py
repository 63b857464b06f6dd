"""A judge as a policy: groups are pairs, and a sample is one trace about one of the two edits (GCPO, arXiv 2604.27505).

The reward of a trace is the score that it ends with; which traces did well is decided in the grouping, where the
scores of both edits meet. A trace that cannot be read has no score, takes part in no comparison and is not trained on.
Seeds belong to (step, pair, trace): the same traces on any number of devices, and after a resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from premeditate.errors import PremeditateError, one_line
from premeditate.prompts import verify_words
from premeditate.prompts.verify import TOP
from premeditate.reasoners.base import ChatRequest
from premeditate.rewards.base import Sample
from premeditate.rewards.judges.interval import fitted
from premeditate.rl.losses import Loss, clipped_tokens, token_kl
from premeditate.trace import Task
from premeditate.training.data import sample_seed
from premeditate.training.geometry import cut
from premeditate.training.policy import Place, Policy, Rollout, Rows
from premeditate.training.tokens.model import TokenModel, Trace
from premeditate.training.verifier.pairs import Comparison
from premeditate.training.verifier.recipe import VerifierRecipe
from premeditate.training.verifier.rewards import JUDGED


@dataclass(frozen=True)
class _Row:
    trace: Trace
    advantage: float


class PairPolicy(Policy):
    """`train`, `held_out`: the pairs. A group's samples: batch.group_size / 2 traces of the preferred edit, then as
    many of the other."""

    def __init__(
        self, recipe: VerifierRecipe, model: TokenModel, train: Sequence[Comparison], held_out: Sequence[Comparison]
    ) -> None:
        self.recipe, self.model, self.train, self.held_out = recipe, model, train, held_out
        self.module: nn.Module = model.network
        self.words, self.mode = verify_words(model.reasoner.prompts), recipe.judging.mode

    # -- sampling -----------------------------------------------------------------------------------------------------

    def sample(self, places: Sequence[Place]) -> Iterator[Rollout]:
        size, most = self.recipe.batch.group_size, self.recipe.batch.forward
        for part in cut(len(places), max(1, most // size)):
            some = [places[i] for i in part]
            seeds = [
                [sample_seed(self.recipe.seed, p.step, p.index, m, "trace") % 2**31 for m in range(size)] for p in some
            ]
            temperature = self.recipe.judging.temperature
            opened = [self._open(self.train[place.row]) for place in some]
            asked = [
                request
                for place, pictures, own in zip(some, opened, seeds, strict=True)
                if not isinstance(pictures, str)
                for request in self._requests(self.train[place.row], pictures, own, temperature)
            ]
            done = iter(self.model.write(asked, most))
            traces: list[Trace | None] = []
            samples: list[Sample] = []
            for place, pictures in zip(some, opened, strict=True):
                for m in range(size):
                    trace = None if isinstance(pictures, str) else next(done)
                    traces.append(trace)
                    samples.append(self._sample(self.train[place.row], pictures, m >= size // 2, [trace], place))
            yield Rollout(some, samples, traces, len(asked))

    def _open(self, comparison: Comparison) -> tuple[Image.Image, Image.Image, Image.Image] | str:
        """The pictures, or why there are none."""
        try:
            return comparison.pictures()
        except PremeditateError as error:
            return one_line(error)

    def _requests(
        self, comparison: Comparison, pictures: Sequence[Image.Image], seeds: Sequence[int], temperature: float
    ) -> list[ChatRequest]:
        """The first half about the preferred edit, the second about the other."""
        source, *edits = pictures
        items = comparison.principles
        text = self.words.judge(comparison.pair.instruction, items, self.mode)
        most = self.recipe.judging.max_tokens or self.words.tokens(len(items), self.mode)
        shown = [(source, fitted(edit, source)) for edit in edits]
        half = len(seeds) // 2
        return [
            ChatRequest(shown[m >= half], text, max_tokens=most, temperature=temperature, seed=seed)
            for m, seed in enumerate(seeds)
        ]

    def _sample(
        self, comparison: Comparison, pictures: Any, other: bool, traces: Sequence[Trace | None], place: Place | None
    ) -> Sample:
        """What the rewards read: judgements in the task's meta. `pictures`: opened, or why they cannot be."""
        reason = pictures if isinstance(pictures, str) else ""
        judged = [self._judged(comparison, trace, reason) for trace in traces]
        blank = Image.new("RGB", (1, 1))
        source, *edits = (blank, blank, blank) if reason else pictures
        task = Task(id=comparison.id, images=(), instruction=comparison.pair.instruction, meta={JUDGED: judged})
        return Sample(task, source, edits[other], group="" if place is None else f"{place.step}/{place.index}")

    def _judged(self, comparison: Comparison, trace: Trace | None, reason: str) -> dict[str, Any]:
        if trace is None:
            return {"status": "unavailable", "score": None, "reason": reason}
        found = self.words.parse(trace.text, len(comparison.principles), self.mode)
        if found.status == "scored" and found.score is not None:
            return {"status": "scored", "score": found.score / TOP, "reason": ""}
        cut_off = "" if trace.ended else f" (cut off after {len(trace.tokens)} tokens: raise judging.max_tokens)"
        return {"status": found.status, "score": None, "reason": f"it said {trace.text[:200]!r}{cut_off}"}

    # -- training -----------------------------------------------------------------------------------------------------

    def rows(self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], masks: Sequence[Tensor]) -> Rows:
        size = self.recipe.batch.group_size
        groups, found = [], []
        for rollout, values, mask in zip(rollouts, advantages, masks, strict=True):
            for i, (trace, value, keep) in enumerate(zip(rollout.data, values.tolist(), mask.tolist(), strict=True)):
                if keep:
                    assert trace is not None
                    groups.append(rollout.places[i // size].index)
                    found.append(_Row(trace, value))
        rows = Rows([0] * len(found), groups, found)
        if self.recipe.batch.updates > 1:
            with torch.no_grad():
                rows.old = {
                    i: value.cpu()
                    for part in cut(len(found), self.recipe.batch.forward) if found
                    for i, value in zip(part, self.model.log_probs([found[i].trace for i in part])[0], strict=True)
                }  # fmt: skip
        return rows

    def loss(self, rows: Rows, indices: Sequence[int]) -> Loss:
        if not indices:
            zero = sum((p.sum() for p in self.module.parameters() if p.requires_grad), torch.zeros(())) * 0
            return Loss(zero, {})
        part: list[_Row] = [rows.data[i] for i in indices]
        traces = [row.trace for row in part]
        now, mask = self.model.log_probs(traces)
        old = now.detach()
        if rows.old is not None:
            # Cut or filled to this batch's width; what is filled in does not count.
            known = [rows.old[i][: now.shape[1]] for i in indices]
            old = torch.nn.utils.rnn.pad_sequence(known, batch_first=True).to(now)
            old = torch.nn.functional.pad(old, (0, now.shape[1] - old.shape[1]))
        weight = torch.tensor([row.advantage for row in part], device=now.device)
        found = clipped_tokens(now, old, weight, mask, clip_range=self.recipe.algorithm.clip_range)
        values, metrics = found.values, {**found.metrics, "tokens": mask.sum(1).float()}
        if self.recipe.algorithm.kl:
            kl = token_kl(now, self.model.reference_log_probs(traces), mask)
            values, metrics["kl"] = values + self.recipe.algorithm.kl * kl, kl.detach()
        return Loss(values, metrics)

    # -- looking at it ------------------------------------------------------------------------------------------------

    def evaluate(self, rows: Sequence[int]) -> Iterator[tuple[Sequence[int], Sequence[Sample]]]:
        """Greedy: one sample per pair, which shows both edits, the preferred one on the left."""
        for part in cut(len(rows), max(1, self.recipe.batch.forward // 2)) if rows else ():
            which = [rows[i] for i in part]
            opened = [self._open(self.held_out[row]) for row in which]
            asked = [
                request for row, pictures in zip(which, opened, strict=True) if not isinstance(pictures, str)
                for request in self._requests(self.held_out[row], pictures, (0, 0), 0.0)
            ]  # fmt: skip
            done = iter(self.model.write(asked, self.recipe.batch.forward))
            samples = []
            for row, pictures in zip(which, opened, strict=True):
                traces = [None, None] if isinstance(pictures, str) else [next(done), next(done)]
                shown = pictures if isinstance(pictures, str) else (pictures[0], _beside(*pictures[1:]), pictures[2])
                samples.append(self._sample(self.held_out[row], shown, False, traces, None))
            yield which, samples

    def updated(self) -> None:
        return None

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        assert not state


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    page = Image.new("RGB", (left.width + right.width, max(left.height, right.height)))
    page.paste(left, (0, 0))
    page.paste(right, (left.width, 0))
    return page
