"""The two models that the bench of reasoning reward models begins with: reasoners that can answer several questions.

    python bench/rrm_bases.py large
    python bench/rrm_bases.py small-0 --layers 0 2 4 --lessons single --steps 1400
    python bench/rrm_bases.py small --start small-0

The layers that are named are those of the shipped reasoner and keep their weights (as DistilBERT begins from every
other layer of its teacher, arXiv 1910.01108); without --layers all of them are there. All weights then learn, from
edits and truths of the reasoner's own course:

single   to answer one question about two pictures, and to criticise, as the shipped reasoner can
lists    to answer several questions, one after the other: what a vision-language model of size can do before it is
         taught to judge, and the tiny one cannot, for it has learnt to look at pictures from right behind them only

--start goes on from another folder.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch.nn import functional as F

from premeditate import presets
from premeditate.microworld.families import TRAINED
from premeditate.microworld.models.common import warmup_stable_decay
from premeditate.microworld.models.reasoner_batch import Batch, Encoder, collate
from premeditate.microworld.models.reasoner_build import build_model, load_folder, save_folder
from premeditate.microworld.models.reasoner_data import Branch, Item, look_item
from premeditate.microworld.models.reasoner_fast import Fast
from premeditate.microworld.tasks import sample_task

WEIGHT = 10.0
"""Of a verdict in a list, against the 0.3 of the other words, which are copied."""


@dataclass(frozen=True)
class Course:
    """`batch` pairs of pictures in a step, each with questions of these `dimensions`."""

    batch: int
    rate: float
    dimensions: tuple[str, ...]


COURSES = {
    "single": Course(48, 1.5e-3, ("follow", "keep", "quality", "follow")),
    "lists": Course(32, 2e-3, ("follow", "follow", "follow", "follow", "keep", "keep", "quality", "quality")),
}


def shrunk(model: Any, tokenizer: Any, layers: list[int]) -> Any:
    """A model of these layers of `model`, with its weights."""
    small = build_model(tokenizer, layers=len(layers), inter=model.config.text_config.intermediate_size)
    place = {f"layers.{old}.": f"layers.{new}." for new, old in enumerate(layers)}
    state = {}
    for name, value in model.state_dict().items():
        parts = [old for old in place if f".{old}" in name and "language_model" in name]
        if parts:
            name = name.replace(parts[0], place[parts[0]])
        elif "language_model.layers." in name:
            continue
        state[name] = value
    small.load_state_dict(state)
    return small


def surveys(item: Item, instruction: str, rng: random.Random) -> Item:
    """The item with its questions as two lists."""
    asked = [b for b in item.branches if b.skill == "answer"]
    rng.shuffle(asked)
    lists = []
    for some in filter(None, (asked[::2], asked[1::2])):
        questions = [b.prompt.removeprefix("answer : ") for b in some]
        listed = " ".join(f"{i} {words}" for i, words in enumerate(questions, 1))
        said = "\n".join(
            f"{i} {words}\n{b.answer}" for i, (words, b) in enumerate(zip(questions, some, strict=True), 1)
        )
        lists.append(Branch("checklist", f"answers : {instruction} | {listed}", said))
    return replace(item, branches=tuple(lists))


def batches(encoder: Encoder, lessons: str, seed: int) -> Iterator[Batch]:
    rng, number, course = random.Random(f"{lessons}/{seed}"), seed * 1_000_000, COURSES[lessons]
    while True:
        items = []
        for family in rng.choices(TRAINED, k=8 * course.batch):
            number += 1
            task = sample_task(number, "train", family=family)
            item = look_item(task, rng, None, course.dimensions, 0.3)
            items.append(surveys(item, task.instruction, rng) if lessons == "lists" else item)
        items.sort(key=lambda item: sum(len(b.prompt) + len(b.answer) for b in item.branches))
        parts = [collate(items[i : i + course.batch], encoder) for i in range(0, len(items), course.batch)]
        rng.shuffle(parts)
        yield from parts


def loss_of(fast: Fast, batch: Batch, lessons: str, verdicts: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The weighted loss, and the share of verdicts that the model would have given."""
    seen = fast.see(batch.pictures)
    states, _ = fast.hidden(batch.ids, seen.reshape(len(batch.ids), -1, seen.shape[-1]), batch.positions, batch.mask)
    wanted = batch.weights > 0
    logits = fast.logits(states[wanted])
    labels, weights = batch.labels[wanted], batch.weights[wanted]
    told = torch.isin(labels, verdicts)
    if lessons == "lists":
        weights = torch.where(told, WEIGHT, 0.3 * weights)
    words = F.cross_entropy(logits, labels, reduction="none")
    right = logits[told].argmax(-1) == labels[told]
    return (words * weights).sum() / weights.sum(), right.float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, nargs="+")
    parser.add_argument("--start", type=Path, default=Path(presets.resolve("reasoner", "micro").spec))
    parser.add_argument("--lessons", choices=list(COURSES), default="lists")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_folder(args.start)
    made = model.train() if args.layers is None else shrunk(model, tokenizer, args.layers).train()
    encoder = Encoder(tokenizer)
    spoken = torch.tensor(list(encoder.labels.values()))
    fast, source, top = Fast(made), batches(encoder, args.lessons, args.seed), COURSES[args.lessons].rate
    optimizer = torch.optim.AdamW(made.parameters(), lr=top, betas=(0.9, 0.98), weight_decay=0.01)
    start, mean, rate = time.process_time(), 0.0, 0.0
    for step in range(1, args.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = top * warmup_stable_decay((step - 1) / args.steps, decay=0.5)
        optimizer.zero_grad()
        loss, right = loss_of(fast, next(source), args.lessons, spoken)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
        keep = 0.0 if step == 1 else 0.98
        mean, rate = keep * mean + (1 - keep) * loss.item(), keep * rate + (1 - keep) * right
        if step % 25 == 0:
            print(f"step {step} {time.process_time() - start:.0f} s loss {mean:.3f} verdicts {rate:.3f}", flush=True)
    save_folder(args.out, made.eval(), tokenizer)
    print(f"{sum(p.numel() for p in made.parameters()):,} weights in {args.out}")


if __name__ == "__main__":
    main()
