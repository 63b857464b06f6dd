"""The training core: sample groups, reward them, turn rewards into advantages, update; and watch, log and save.

It knows nothing of the model. One step is

    order -> policy.sample -> panel.submit (while the next part is sampled) -> grouping -> policy.rows
          -> `updates` optimiser steps over micro-batches -> log, evaluate, checkpoint

What a step does is a function of the seed and of the step's number, so that a resumed run, or one on another number of
processes, does the same.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from premeditate.rewards.panel import Panel, Scores
from premeditate.training import checkpoint
from premeditate.training.advantages import advantages, asked, ordered
from premeditate.training.data import Order
from premeditate.training.distributed import World, whole
from premeditate.training.ema import Ema
from premeditate.training.errors import TrainingError
from premeditate.training.geometry import Geometry
from premeditate.training.journal import Journal
from premeditate.training.policy import Place, Policy, Rollout, Rows, micro_batches
from premeditate.training.recipe import Run
from premeditate.training.watch import ORDERED, Tally, Watch

_SMALLER = "start again with a lower optimizer.lr, a lower optimizer.max_grad_norm, or model.dtype=float32"


@dataclass
class Parts:
    """What a run is put together from. `rows`, `held_out`: how many tasks there are to train and to evaluate on.
    `made_of`: what must be the same when the run goes on (what it is -> a digest)."""

    policy: Policy
    panel: Panel
    judge: Panel
    rows: int
    held_out: int
    made_of: Mapping[str, str] = field(default_factory=dict)


class Trainer:
    """One run. `run` goes from where the state stands to the last step."""

    def __init__(self, recipe: Run, parts: Parts, world: World, out: Path, journal: Journal | None) -> None:
        self.recipe, self.parts, self.world, self.out, self.journal = recipe, parts, world, out, journal
        self.policy = parts.policy
        self.named = {name: p for name, p in self.policy.module.named_parameters() if p.requires_grad}
        if not self.named:
            raise TrainingError("nothing of the model is trained", "give model.lora.rank=32, or model.lora=null")
        options = recipe.optimizer
        self.optimizer = torch.optim.AdamW(
            self.named.values(), lr=options.lr, betas=options.betas, weight_decay=options.weight_decay
        )
        self.ema = Ema(list(self.named.values()), options.ema) if options.ema else None
        self.geometry = Geometry.of(recipe, world.size)
        self.order = Order(parts.rows, recipe.batch.groups, recipe.seed)
        self.watch = Watch(recipe.patience)
        self.step = 0

    # -- the run ------------------------------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        """Trains until `steps` steps are done. Raises `TrainingError`."""
        if self.step == 0:
            self.evaluate()
        while self.step < steps:
            figures = self.train_step()
            self.step += 1
            self.note("step", figures)
            last = self.step == steps
            if self.step % self.recipe.evaluation.every == 0 or last:
                self.evaluate()
            if self.step % self.recipe.checkpoint.every == 0 or last:
                self.save()

    def train_step(self) -> dict[str, float]:
        """One step; its figures, over all processes."""
        marks = [time.perf_counter()]
        rollouts, scores = self._sample(marks)
        tally = Tally(self.world)
        grouped = [self._grouped(rollout, found, tally) for rollout, found in zip(rollouts, scores, strict=True)]
        figures = tally.figures()
        self._check_coverage(figures, scores)
        marks.append(time.perf_counter())
        rows = self.policy.rows(rollouts, [a for a, _ in grouped], [m for _, m in grouped])
        self.policy.module.train()
        losses = Tally(self.world)
        for update in range(self.geometry.updates):
            chosen = [i for i, group in enumerate(rows.groups) if self.geometry.update_of(group) == update]
            self._update(rows, chosen, losses)
        self.policy.updated()
        marks.append(time.perf_counter())
        figures |= losses.figures()
        phases = zip(("sample", "reward", "update"), pairwise(marks), strict=True)
        seconds = {f"seconds/{name}": after - before for name, (before, after) in phases}
        forwards = sum(rollout.forwards for rollout in rollouts)
        (total,) = self.world.sums([forwards])
        if said := self.watch.step(figures):
            raise TrainingError(*said)
        return {**figures, "rollout_forwards": total, **seconds}

    def _sample(self, marks: list[float]) -> tuple[list[Rollout], list[Scores]]:
        """This process's share of the step's groups, sampled and scored; scoring runs beside the sampling."""
        order = self.order.at(self.step)
        places = [Place(self.step, i, order[i]) for i in self.geometry.assignment(self.world.rank)]
        self.policy.module.eval()
        rollouts, waiting = [], []
        for rollout in self.policy.sample(places):
            rollouts.append(rollout)
            waiting.append(self.parts.panel.submit(rollout.samples))
        marks.append(time.perf_counter())
        return rollouts, [pending.result() for pending in waiting]

    def _grouped(self, rollout: Rollout, scores: Scores, tally: Tally) -> tuple[Tensor, Tensor]:
        """Advantages and mask [N] of a rollout's samples, group by group."""
        size = self.recipe.batch.group_size
        matrix = torch.as_tensor(scores.matrix, dtype=torch.float32)
        parts = [(part, asked(part, scores.names)) for part in matrix.split(size)]
        weights = torch.tensor(self.parts.panel.weights, dtype=torch.float32)
        found = [advantages(part[:, some], self.recipe.grouping, weights[some]) for part, some in parts]
        present = ~matrix.isnan()
        for name, column, there in zip(scores.names, matrix.T, present.T, strict=True):
            tally.add(f"reward/{name}", column[there])
        tally.add("coverage", torch.cat([~part[:, some].isnan().any(1) for part, some in parts]).float())
        for name, column in zip(scores.rewards, zip(*scores.statuses, strict=True), strict=True):
            tally.add(f"coverage/{name}", torch.tensor([float(status == "scored") for status in column]))
            tally.add(f"seconds/reward/{name}", torch.tensor([scores.seconds[name]]))
        tally.add("groups/informative", torch.tensor([float(mask.any()) for _, mask in found]))
        tally.add("samples/kept", torch.cat([mask for _, mask in found]).float())
        if self.recipe.grouping.kind == "gcpo":
            for part, _ in parts:
                tally.add(ORDERED, ordered(part))
        spread = [part[:, some].sum(1) for part, some in parts]
        spread = [values[~values.isnan()] for values in spread]
        tally.add("groups/std", torch.tensor([float(s.std(unbiased=False)) for s in spread if len(s) > 1]))
        return torch.cat([a for a, _ in found]), torch.cat([m for _, m in found])

    def _check_coverage(self, figures: Mapping[str, float], scores: Sequence[Scores]) -> None:
        share = figures.get("coverage", 0.0)
        if share >= self.recipe.min_coverage and share > 0:
            return
        reasons = Counter(reason for found in scores for reason in found.reasons)
        everywhere: Counter[str] = sum(self.world.gather(reasons), Counter())
        why = "; ".join(reason for reason, _ in everywhere.most_common(3)) or "no reason was given"
        raise TrainingError(
            f"step {self.step + 1}: only {share:.0%} of the samples got a reward, less than "
            f"{self.recipe.min_coverage:.0%} ({why})",
            "mend the reward and go on with --resume, or lower min_coverage",
        )

    # -- the update ---------------------------------------------------------------------------------------------------

    def _update(self, rows: Rows, chosen: Sequence[int], tally: Tally) -> None:
        """One optimiser step on the rows `chosen`, over all processes."""
        (total,) = self.world.sums([len(chosen)])
        if total == 0:
            return
        self.optimizer.zero_grad(set_to_none=True)
        for batch in micro_batches(rows, chosen, self.recipe.batch.forward, self.world):
            loss = self.policy.loss(rows, batch)
            (loss.values.sum() / total).backward()
            if batch:
                tally.add("loss", loss.values)
                for name, value in loss.metrics.items():
                    tally.add(name, torch.as_tensor(value).expand(len(batch)))
        self.world.sum_gradients(self.named.values())
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.named.values(), self.recipe.optimizer.max_grad_norm)))
        (bad,) = self.world.sums([0.0 if math.isfinite(norm) and tally.finite("loss") else 1.0])
        if bad:
            raise TrainingError(
                f"step {self.step + 1}: the loss or its gradient is not finite (gradient norm {norm})",
                _SMALLER,
            )
        warm = min(1.0, (self.step + 1) / max(1, self.recipe.optimizer.warmup))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.optimizer.lr * warm
        self.optimizer.step()
        if self.ema:
            self.ema.update()
        tally.add("gradient_norm", torch.tensor([norm] if self.world.first else []))

    # -- looking at it ------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Held-out rewards with the deterministic sampler, with averaged weights where there are some."""
        if not self.parts.held_out:
            return {}
        world, tally = self.world, Tally(self.world)
        # Every process edits as many; a row that another one has is edited twice and counted once.
        last = -(-self.parts.held_out // world.size) * world.size
        rows = [i % self.parts.held_out for i in range(world.rank, last, world.size)]
        shown: list[tuple[int, Any, Mapping[str, float]]] = []
        self.policy.module.eval()
        start = time.perf_counter()
        with self.averaged():
            waiting = [
                (which, samples, self.parts.judge.submit(samples)) for which, samples in self.policy.evaluate(rows)
            ]
        for which, samples, pending in waiting:
            scores = pending.result()
            mine = torch.tensor([row % world.size == world.rank for row in which])
            matrix = torch.as_tensor(scores.matrix, dtype=torch.float32)
            for name, column in zip(scores.names, matrix[mine].T, strict=True):
                tally.add(f"eval/{name}", column[~column.isnan()])
            tally.add("eval/coverage", (~matrix[mine].isnan()).all(1).float())
            for row, sample, values in zip(which, samples, matrix.tolist(), strict=True):
                if len(shown) < self.recipe.logging.grids:
                    shown.append((row, sample, dict(zip(scores.names, values, strict=True))))
        figures = tally.figures(intervals=True) | {"seconds/eval": time.perf_counter() - start}
        self.note("eval", figures)
        if self.journal is not None:
            self.journal.grid(self.step, shown)
            for line in self.watch.evaluation(self.step, figures):
                self.journal.notice(line)
        return figures

    def averaged(self) -> Any:
        """A context in which the module holds the averaged weights, where there are some."""
        from contextlib import nullcontext

        return self.ema.swapped() if self.ema else nullcontext()

    def note(self, kind: str, figures: Mapping[str, float]) -> None:
        if self.journal is not None:
            self.journal.write(kind, self.step, figures)

    # -- keeping it ---------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """A checkpoint of everything. All processes take part; the first one writes. Raises `TrainingError` for weights
        that are not finite, so that the newest checkpoint is one to go on with."""
        if not all(bool(whole(p.detach().isfinite().all())) for p in self.named.values()):
            raise TrainingError(f"step {self.step}: the weights are not finite", _SMALLER)

        def kept(value: Tensor) -> Tensor:
            full = whole(value.detach())  # all take part in that, one needs it
            return full.cpu() if self.world.first else torch.empty(0)

        model = {name: kept(p) for name, p in self.named.items()}
        optimizer = _mapped(self.optimizer.state_dict(), kept)
        extra = {f"policy.{k}": kept(v) for k, v in self.policy.state().items()}
        if self.ema:
            extra |= {f"ema.{k}": kept(v) for k, v in self.ema.state().items()}
        if self.world.first:
            checkpoint.save(
                self.out, self.step, model=model, optimizer={"optimizer": optimizer, "extra": extra},
                state={"watch": self.watch.state(), "made_of": dict(self.parts.made_of)}, recipe=self.recipe,
                keep=self.recipe.checkpoint.keep,
            )  # fmt: skip
        self.world.wait()

    def restore(self, saved: checkpoint.Saved) -> None:
        """Takes a checkpoint, whatever number of processes wrote it. Raises `TrainingError` where it was made of other
        tasks or another base."""
        before = saved.state["made_of"]
        if changed := [what for what, digest in self.parts.made_of.items() if before.get(what) != digest]:
            raise TrainingError(
                f"{' and '.join(changed)} changed since {saved.path} was written",
                "put back what was there, or start again in another folder (out=...)",
            )
        with torch.no_grad():
            for name, p in self.named.items():
                p.copy_(_like(saved.model[name], p))
        state = saved.optimizer["optimizer"]
        for i, p in enumerate(self.named.values()):
            moments = state["state"].get(i, {})  # a parameter that never had a gradient has none
            moments.update({k: _like(v, p) for k, v in moments.items() if isinstance(v, Tensor) and v.shape == p.shape})
        self.optimizer.load_state_dict(state)
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in saved.optimizer["extra"].items():
            kind, _, name = key.partition(".")
            parts[kind][name] = value
        self.policy.restore(parts["policy"])
        if self.ema:
            self.ema.restore(parts["ema"])
        self.watch.restore(saved.state["watch"])
        self.step = saved.step


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` on the parameter's device, sharded as it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: _mapped(v, change) for k, v in value.items()}
    return [_mapped(v, change) for v in value] if isinstance(value, list) else value
