"""A judge as a policy: groups are pairs, and a sample is one trace about one of the two edits (GCPO, arXiv 2604.27505).

The reward of a trace is the score that it ends with; which traces did well is decided in the grouping, where the
scores of both edits meet. A trace that cannot be read has no score, takes part in no comparison and is not trained on.
Seeds belong to (step, group, trace): the same traces on any number of devices, and after a resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from premeditate.errors import PremeditateError, one_line
from premeditate.images import resize_back
from premeditate.prompts import verify_words
from premeditate.prompts.verify import TOP
from premeditate.reasoners.base import ChatRequest
from premeditate.rewards.base import Sample
from premeditate.rewards.judges.rrm import question
from premeditate.rl.losses import Loss, clipped_tokens, token_kl
from premeditate.trace import Task
from premeditate.training import grid
from premeditate.training.data import sample_seed
from premeditate.training.geometry import cut
from premeditate.training.policy import Place, Policy, Rollout, Rows
from premeditate.training.tokens.model import TokenModel, Trace
from premeditate.training.verifier.pairs import Comparison
from premeditate.training.verifier.recipe import VerifierRecipe
from premeditate.training.verifier.rewards import JUDGED

_LABEL = 20
"""Pixels above a picture for words."""


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
            traces: list[Trace | str] = []
            samples: list[Sample] = []
            for place, pictures in zip(some, opened, strict=True):
                own = [pictures if isinstance(pictures, str) else next(done) for _ in range(size)]
                group = f"{place.step}/{place.index}"
                # The rewards read what was said, and look at no picture.
                samples += [self._sample(self.train[place.row], [trace], group=group) for trace in own]
                traces += own
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
        about = comparison.pair.instruction, comparison.principles, source
        asked = [question(self.words, self.mode, *about, edit) for edit in edits]
        most, half = self.recipe.judging.max_tokens or asked[0].max_tokens, len(seeds) // 2
        return [
            replace(asked[m >= half], max_tokens=most, temperature=temperature, seed=seed)
            for m, seed in enumerate(seeds)
        ]

    def _sample(
        self, comparison: Comparison, traces: Sequence[Trace | str], *, group: str = "",
        shown: tuple[Image.Image, Image.Image] | None = None,
    ) -> Sample:  # fmt: skip
        """What the rewards read: judgements, in the task's meta. `traces`: or why there are none. `shown`: to people,
        for a source and an edit."""
        judged = [self._judged(comparison, trace) for trace in traces]
        task = Task(id=comparison.id, images=(), instruction=comparison.pair.instruction, meta={JUDGED: judged})
        source, edit = shown or (Image.new("RGB", (1, 1)),) * 2
        return Sample(task, source, edit, group=group)

    def _judged(self, comparison: Comparison, trace: Trace | str) -> dict[str, Any]:
        if isinstance(trace, str):
            return {"status": "unavailable", "score": None, "reason": trace}
        found = self.words.parse(trace.text, len(comparison.principles), self.mode)
        if found.status == "scored" and found.score is not None:
            return {"status": "scored", "score": found.score / TOP, "reason": ""}
        mend = "" if trace.ended else f"cut off after {len(trace.tokens)} tokens (raise judging.max_tokens); "
        return {"status": found.status, "score": None, "reason": f"{mend}it said {trace.text[:200]!r}"}

    # -- training -----------------------------------------------------------------------------------------------------

    def rows(self, rollouts: Sequence[Rollout], advantages: Sequence[Tensor], masks: Sequence[Tensor]) -> Rows:
        size = self.recipe.batch.group_size
        groups, found = [], []
        for rollout, values, mask in zip(rollouts, advantages, masks, strict=True):
            for i, (trace, value, keep) in enumerate(zip(rollout.data, values.tolist(), mask.tolist(), strict=True)):
                if keep:
                    assert isinstance(trace, Trace)
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
            # Nothing here is collective; and gradients of 0 would have the optimiser decay what takes no part.
            return Loss(torch.zeros((), requires_grad=True), {})
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
        """Greedy: one sample per pair, with a judgement of each edit. Only as many as a grid takes hold pictures: both
        edits side by side, each with its score."""
        grids = self.recipe.logging.grids
        for part in cut(len(rows), max(1, self.recipe.batch.forward // 2)) if rows else ():
            pairs = [self.held_out[rows[i]] for i in part]
            opened = [self._open(pair) for pair in pairs]
            asked = [
                request for pair, pictures in zip(pairs, opened, strict=True) if not isinstance(pictures, str)
                for request in self._requests(pair, pictures, (0, 0), 0.0)
            ]  # fmt: skip
            done = iter(self.model.write(asked, self.recipe.batch.forward))
            samples = []
            for i, pair, pictures in zip(part, pairs, opened, strict=True):
                if isinstance(pictures, str):
                    samples.append(self._sample(pair, [pictures, pictures]))
                    continue
                traces, shown = [next(done), next(done)], None
                if i < grids:
                    scores = [self._judged(pair, trace)["score"] for trace in traces]
                    edits = [resize_back(edit, pictures[0].size) for edit in pictures[1:]]
                    shown = pictures[0], _side_by_side(edits, scores)
                samples.append(self._sample(pair, traces, shown=shown))
            yield [rows[i] for i in part], samples


def _side_by_side(edits: Sequence[Image.Image], scores: Sequence[float | None]) -> Image.Image:
    """The preferred edit and the other one, of one size, each below its score (RGB). As wide as a grid lets be."""
    wide = grid.LARGEST // 2
    scale = wide / max(edits[0].size)
    scale = int(scale) if scale > 1 else scale  # small ones hold pixels
    width, height = (max(1, round(side * scale)) for side in edits[0].size)
    page = Image.new("RGB", (grid.LARGEST, height + _LABEL), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(grid.TEXT)
    for k, (edit, score, name) in enumerate(zip(edits, scores, ("better", "worse"), strict=True)):
        how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
        page.paste(edit.convert("RGB").resize((width, height), how), (k * wide, _LABEL))
        pen.text((k * wide + 2, 0), f"{name}: {'-' if score is None else f'{score:.2f}'}", fill="black", font=font)
    pen.line([(wide, _LABEL), (wide, page.height)], fill="white", width=2)
    return page
