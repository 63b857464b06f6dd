"""Training the tiny reasoner from nothing, on one CPU core, in about an hour and a half.

What made it learn: one sequence per pair of pictures with all questions as branches (`reasoner_fast`); a throw-away
head that names each cell from its image token, and one that names the cells to change from the last prompt token; Muon
for the matrices; families drawn more often the worse they go. bf16 copies of fp32 weights do the arithmetic.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from premeditate.microworld.families import KINDS, TRAINED
from premeditate.microworld.models.common import (
    Average,
    Clock,
    Log,
    load_checkpoint,
    save_checkpoint,
    warmup_stable_decay,
)
from premeditate.microworld.models.reasoner_batch import FACTOR_SIZES, Batch, Encoder, collate, factors
from premeditate.microworld.models.reasoner_build import build_model, build_tokenizer, load_folder, save_folder
from premeditate.microworld.models.reasoner_data import PROMPTS, Item, look_item, think_item
from premeditate.microworld.models.reasoner_eval import evaluate_model
from premeditate.microworld.models.reasoner_fast import Fast
from premeditate.microworld.models.reasoner_own import OwnPlans
from premeditate.microworld.models.reasoner_vae import SHIPPED, round_trip
from premeditate.microworld.scene import CELLS
from premeditate.microworld.tasks import TEST_SEEDS, sample_task

MIXTURES = ((0.0, 44, 18, 4), (0.32, 36, 28, 4), (0.5, 24, 44, 4), (0.7, 24, 60, 2))
"""From that progress on: sequences per step with one picture (plan, checklist), with two (answers, critique), and
answer questions per pair of pictures. Planning comes first: a critique needs to know the plan."""
POOL = 8
"""Steps drawn at a time, so that sequences of like length go together."""
DIMENSIONS = ("follow", "keep", "keep", "quality", "quality")
"""What answer questions are drawn from: quality has one wording, keep is the hardest."""
MISLED = 0.4
"""The share of edits that follow a wrong plan: the hardest to criticise, so more than in the evaluation."""
SECOND = (36, 48, 2)
"""The second course's mixture: it starts from a reasoner and adds its own mistakes (`reasoner_own`)."""
OWN, FRESH = 0.4, 1536
"""Second course: the share of sequences drawn from its own mistakes; tasks planned anew at each evaluation."""
SECOND_RATE = 0.4
"""Second course: its peak learning rate against the first one's."""
MUON_RATE, ADAM_RATE = 0.02, 2e-3
MARK = 1 + sum(FACTOR_SIZES)
VOCABULARY = 1024


def corpus(n: int = 6000) -> Iterator[str]:
    """Instructions and answers as they are tokenized: what the tokenizer's merges are learnt from."""
    yield from ["yes", "no", "user\n", "assistant\n"] * 200
    for seed in range(n):
        task = sample_task(seed)
        for branch in (
            *think_item(task, random.Random(seed), clean=True).branches,
            *look_item(task, random.Random(seed)).branches,
        ):
            yield branch.prompt
            yield branch.answer


class Heads(nn.Module):
    """The throw-away heads: content and sharpness of each image token; changed cells from the last prompt token;
    whether a cell of the edit differs from the source, from its image token; what the cell asked about holds; wrong
    cells of an edit, one layer later, for they take a comparison more."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.Linear(width, sum(FACTOR_SIZES) + 1)
        self.mark = nn.Linear(width, CELLS * MARK)
        self.differs = nn.Linear(width, 1)
        self.shows = nn.Linear(width, sum(FACTOR_SIZES))
        self.wrong = nn.Linear(width, CELLS * MARK)


class Source:
    """Endless batches. Families are drawn by how often the evaluation draws them, times how badly they go."""

    def __init__(self, encoder: Encoder, seed: int, vae: Path | None = None) -> None:
        self.encoder, self.rng, self.seed = encoder, random.Random(f"reasoner/{seed}"), seed * 50_000_000
        count = {kind: sum(f.kind == kind for f in TRAINED) for kind in KINDS}
        self.base = [0.5 / len(TRAINED) + 0.5 / len(KINDS) / count[f.kind] for f in TRAINED]
        self.hard = [1.0] * len(TRAINED)
        self.queue: list[tuple[Batch, Batch]] = []
        self.own: OwnPlans | None = None
        self.filter = None if vae is None else round_trip(vae, random.Random(f"vae/{seed}"))

    def adapt(self, plans: dict[str, dict[str, Any]], checklists: dict[str, dict[str, Any]]) -> None:
        """Rates by "kind/family": what goes well, plan and checklist both, is drawn down to a fifth as often."""
        for i, family in enumerate(TRAINED):
            name = f"{family.kind}/{family.name}"
            if name in plans:
                worse = min(plans[name]["rate"], checklists[name]["rate"])
                self.hard[i] = 0.5 * self.hard[i] + 0.5 * min(1.0, max(0.2, 1.15 - worse))

    def _tasks(self, n: int, hard: bool) -> Iterator[Any]:
        weights = [b * h if hard else b for b, h in zip(self.base, self.hard, strict=True)]
        for family in self.rng.choices(TRAINED, weights, k=n):
            self.seed += 1
            yield sample_task(self.seed % TEST_SEEDS, "train", family=family)

    def _batches(self, items: list[Item], size: int) -> list[Batch]:
        items.sort(key=lambda item: sum(len(b.prompt) + len(b.answer) for b in item.branches))
        out = [collate(items[i : i + size], self.encoder) for i in range(0, len(items), size)]
        self.rng.shuffle(out)
        return out

    def next(self, progress: float) -> tuple[Batch, Batch]:
        if not self.queue:
            think, look, questions = next(m[1:] for m in reversed(MIXTURES) if progress >= m[0])
            if self.own is not None:
                think, look, questions = SECOND
            ready = self.own is not None and self.own.ready
            own = (round(OWN * think * POOL), round(OWN * look * POOL)) if ready else (0, 0)
            thinks = [think_item(t, self.rng) for t in self._tasks(think * POOL - own[0], True)]
            looks = [
                look_item(t, self.rng, self.filter, self.rng.choices(DIMENSIONS, k=questions), MISLED)
                for t in self._tasks(look * POOL - own[1], False)
            ]
            if self.own is not None:
                thinks += self.own.thinks(own[0])
                looks += self.own.looks(own[1], filter_image=self.filter, dimensions=DIMENSIONS[:questions])
            self.queue = list(zip(self._batches(thinks, think), self._batches(looks, look), strict=True))
        return self.queue.pop()


def batch_loss(fast: Fast, heads: Heads, batch: Batch, taps: tuple[int, int, int]) -> dict[str, Tensor]:
    """Sums of weighted losses: words, cells (auxiliary), marks (auxiliary), and the words' weight. `taps`: the layers
    whose states the heads read: differs; mark and shows; wrong."""
    seen = fast.see(batch.pictures)
    rows = len(batch.ids)
    pictures = seen.reshape(rows, -1, seen.shape[-1])
    states, (early, tapped, late) = fast.hidden(batch.ids, pictures, batch.positions, batch.mask, taps)
    wanted = batch.weights > 0
    words = F.cross_entropy(fast.logits(states[wanted]).float(), batch.labels[wanted], reduction="none")
    out = {"words": (words * batch.weights[wanted]).sum(), "weight": batch.weights.sum()}

    guess = heads.cell(seen).float()
    *parts, sharp = guess.split((*FACTOR_SIZES, 1), dim=-1)
    clear = batch.sharp.float()
    cell = sum(
        (F.cross_entropy(p.transpose(1, 2), t, reduction="none") * clear).mean()
        for p, t in zip(parts, factors(batch.codes), strict=True)
    )
    # Cells that are not sharp are one in fifty.
    out["cells"] = cell + F.binary_cross_entropy_with_logits(sharp.squeeze(-1), clear, 1 + 9 * (1 - clear))

    if pictures.shape[1] > CELLS:
        tokens = early[batch.ids == fast.model.config.image_token_id].reshape(rows, 2, CELLS, -1)[:, 1]
        source, edit = batch.codes.reshape(rows, 2, CELLS).unbind(1)
        out["cells"] = out["cells"] + F.binary_cross_entropy_with_logits(
            heads.differs(tokens).squeeze(-1).float(),
            (source != edit).float(),
            clear.reshape(rows, 2, CELLS)[:, 1],
            pos_weight=torch.tensor(3.0),
        )

    if len(batch.shows):
        at = tapped[batch.asked_at[:, 0], batch.asked_at[:, 1]]
        guesses = heads.shows(at).float().split(FACTOR_SIZES, dim=-1)
        shown = sum(F.cross_entropy(g, t) for g, t in zip(guesses, factors(batch.shows), strict=True))
        out["cells"] = out["cells"] + shown

    looks = pictures.shape[1] > CELLS
    at = (late if looks else tapped)[batch.turn_at[:, 0], batch.turn_at[:, 1]]
    guess = (heads.wrong if looks else heads.mark)(at).float().unflatten(-1, (CELLS, MARK))
    change, *parts = guess.split((1, *FACTOR_SIZES), dim=-1)
    marked = (batch.marks >= 0).float()
    mark = F.binary_cross_entropy_with_logits(change.squeeze(-1), marked)
    for part, target in zip(parts, factors(batch.marks.clamp(min=0)), strict=True):
        loss = F.cross_entropy(part.transpose(1, 2), target, reduction="none")
        mark = mark + (loss * marked).sum() / marked.sum().clamp(min=1) / 3
    out["marks"] = mark
    return out


class Trainer:
    """fp32 weights, their bf16 shadow, the optimizers and the average."""

    def __init__(self, tokenizer: Any, seed: int, **size: int) -> None:
        self.model = build_model(tokenizer, seed=seed, **size)
        self.layers = self.model.config.text_config.num_hidden_layers
        self.heads = Heads(self.model.config.text_config.hidden_size)
        self.live = [*self.model.parameters(), *self.heads.parameters()]
        self.shadow, self.shadow_heads = copy.deepcopy(self.model).bfloat16(), copy.deepcopy(self.heads).bfloat16()
        self.low = [*self.shadow.parameters(), *self.shadow_heads.parameters()]
        self.fast = Fast(self.shadow)
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        chosen = {id(p) for p in matrices}
        self.muon = torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.02)
        self.adam = torch.optim.AdamW(
            [p for p in self.live if id(p) not in chosen], lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.average = Average(list(self.model.parameters()))

    def step(self, batches: tuple[Batch, ...], rate: float, aux: float) -> dict[str, float]:
        with torch.no_grad():
            torch._foreach_copy_(self.low, self.live)
        for low in self.low:
            low.grad = None
        total = sum(float(b.weights.sum()) for b in batches)
        seen = {"words": 0.0, "cells": 0.0, "marks": 0.0}
        taps = (self.layers - 4, self.layers - 3, self.layers - 2)
        for batch in batches:
            parts = batch_loss(self.fast, self.shadow_heads, batch, taps)
            loss = parts["words"] / total + aux * (0.5 * parts["cells"] + 0.5 * parts["marks"]) / len(batches)
            loss.backward()
            seen["words"] += parts["words"].item() / total
            for key in ("cells", "marks"):
                seen[key] += parts[key].item() / len(batches)
        for live, low in zip(self.live, self.low, strict=True):
            live.grad = None if low.grad is None else low.grad.float()
        nn.utils.clip_grad_norm_(self.live, 1.0)
        for group in self.muon.param_groups:
            group["lr"] = MUON_RATE * rate
        for group in self.adam.param_groups:
            group["lr"] = ADAM_RATE * rate
        self.muon.step()
        self.adam.step()
        self.average.update()
        return seen

    @torch.no_grad()
    def begin_with(self, model: Any) -> None:
        """Takes over the weights of a finished reasoner; the throw-away heads start anew."""
        torch._foreach_copy_(list(self.model.parameters()), list(model.parameters()))
        torch._foreach_copy_(self.average.mean, list(model.parameters()))

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "mean": self.average.mean,
            "count": self.average.count,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        with torch.no_grad():
            torch._foreach_copy_(self.average.mean, state["mean"])
        self.average.count = state["count"]


def train_reasoner(
    out: Path | str,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    resume: bool = False,
    log: Callable[[str], None] | None = print,
    every: float = 240.0,
    look: int = 384,
    base_at: float = 0.25,
    decay: float = 0.4,
    threads: int = 1,
    texts: int = 6000,
    start: Path | str | None = None,
    fresh: int = FRESH,
    vae: Path | None = SHIPPED,
    **size: int,
) -> Path:
    """Trains a reasoner into the folder `out` and returns it; the unfinished twin goes to `out` + "-base".

    Bounded by `seconds` of training (evaluations not counted) or by `steps`. Every `every` seconds it is evaluated on
    `look` held-out tasks and checkpointed to `out`/checkpoint.pt, from which `resume` goes on. The base is the average
    at `base_at` of the way, in the constant phase. `start`: a second course for the reasoner in that folder, with its
    own mistakes among the lessons; it plans `fresh` tasks anew at each evaluation, and has no base. `vae`: the
    autoencoder that some edits go through (default: the shipped editor's, where there is one). Raises ValueError for
    neither seconds nor steps, or nothing to resume.
    """
    out = Path(out)
    torch.set_num_threads(threads)
    clock = Clock(seconds=seconds, steps=steps, threads=threads)
    file = out / "checkpoint.pt"
    if resume and not file.exists():
        raise ValueError(f"nothing to resume in {out}: leave out --resume to start")
    if not resume:
        for old in (file, out / "log.jsonl"):
            old.unlink(missing_ok=True)
    record = Log(out / "log.jsonl", log)
    if resume or start is not None:
        tokenizer = load_folder(out if resume else Path(start or out))[1]
    else:
        tokenizer = build_tokenizer(corpus(texts), VOCABULARY)
    encoder = Encoder(tokenizer)
    if vae == SHIPPED and not SHIPPED.exists():
        vae = None
    trainer, source = Trainer(tokenizer, seed, **size), Source(encoder, seed, vae)
    if start is not None:
        source.own = OwnPlans(seed)
        trainer.begin_with(load_folder(Path(start))[0])
    if resume:
        state = load_checkpoint(file)
        trainer.load(state["trainer"])
        clock.step, clock.spent = state["step"], state["spent"]
        source.seed, source.hard = state["seed"], state["hard"]
        source.rng.seed(f"reasoner/{seed}/{clock.step}")
    else:
        save_folder(out, trainer.model, tokenizer)
    record.write(
        event="resume" if resume else "start",
        step=clock.step,
        tokens=len(tokenizer),
        parameters=sum(p.numel() for p in trainer.model.parameters()),
    )

    def refill() -> None:
        assert source.own is not None
        weights = [b * h for b, h in zip(source.base, source.hard, strict=True)]
        right = source.own.refill(trainer.model, encoder, TRAINED, weights, fresh)
        record.write(event="own", step=clock.step, plan=right, wrong=len(source.own.wrong), hard=len(source.own.hard))
        clock.pause()

    look_seed, mean = 900, {"words": 0.0, "cells": 0.0, "marks": 0.0}
    based = start is not None or (resume and bool(state["based"]))
    next_look = clock.spent + every
    if source.own is not None:
        source.seed += TEST_SEEDS // 3  # scenes that the first course has not shown
    clock.pause()
    while clock.progress < 1:
        if source.own is not None and not source.own.hard:
            refill()
        rate = warmup_stable_decay(clock.progress, decay=decay if source.own is None else 0.8)
        rate *= 1.0 if source.own is None else SECOND_RATE
        aux = 1.0 if clock.progress < 0.5 and source.own is None else 0.4
        for key, value in trainer.step(source.next(clock.progress), rate, aux).items():
            mean[key] = value if clock.step == 0 else 0.98 * mean[key] + 0.02 * value
        clock.tick()
        if clock.step % 50 == 0:
            record.write(step=clock.step, seconds=round(clock.spent, 1), rate=rate, **mean)
        ends = clock.progress >= 1
        turns_base = not based and clock.progress >= base_at
        if clock.spent >= next_look or ends or turns_base:
            next_look = clock.spent + every
            trainer.average.swap()
            trainer.model.eval()
            seen = evaluate_model(trainer.model, encoder, look, look_seed, families=TRAINED)
            source.adapt(seen["plan_by_family"], seen["checklist_by_family"])
            if source.own is not None and not ends:
                refill()
            weak = {k.split("/")[1]: round(v["rate"], 2) for k, v in seen["plan_by_family"].items() if v["rate"] < 0.7}
            record.write(
                event="look",
                step=clock.step,
                seconds=round(clock.spent, 1),
                plan=seen["plan"]["rate"],
                checklist=seen["checklist"]["rate"],
                answer=seen["answer"]["balanced"],
                critique=seen["critique"]["rate"],
                accepts=seen["critique_accepts_good"]["rate"],
                refined=seen["critique_refined_prompt"]["rate"],
                weak=weak,
                dims={k: round(v["rate"], 3) for k, v in seen["answer_by_dimension"].items()},
            )
            save_folder(out, trainer.model, tokenizer)
            if turns_base and not ends:
                based = True
                save_folder(out.with_name(out.name + "-base"), trainer.model, tokenizer)
            trainer.average.swap()
            trainer.model.train()
            save_checkpoint(
                file,
                {
                    "trainer": trainer.state(),
                    "step": clock.step,
                    "spent": clock.spent,
                    "seed": source.seed,
                    "hard": source.hard,
                    "based": based,
                },
            )
            clock.pause()
    return out


__all__ = ["PROMPTS", "Heads", "Source", "Trainer", "batch_loss", "corpus", "train_reasoner"]
