"""A smaller reasoner for the comparison of sizes: some layers of the shipped one, taught to look again.

    python bench/rrm_small.py OUT [--layers 0 2 4] [--seconds 600]

The layers that are named keep their weights (as DistilBERT begins from every other layer of its teacher, arXiv
1910.01108), the eyes and the words keep theirs, and all of it learns the *answer* and *critique* lessons of the
reasoner's own course until the time is over. Time is this process's CPU time.
"""

from __future__ import annotations

import argparse
import os
import random
import time
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
from premeditate.microworld.models.reasoner_data import look_item
from premeditate.microworld.models.reasoner_fast import Fast
from premeditate.microworld.tasks import sample_task

BATCH, QUESTIONS, RATE = 48, ("follow", "keep", "quality", "follow"), 1.5e-3


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


def batches(encoder: Encoder, seed: int) -> Any:
    rng, number = random.Random(f"small/{seed}"), seed * 1_000_000
    while True:
        items = []
        for family in rng.choices(TRAINED, k=8 * BATCH):
            number += 1
            items.append(look_item(sample_task(number, "train", family=family), rng, None, QUESTIONS, 0.3))
        items.sort(key=lambda item: sum(len(b.prompt) + len(b.answer) for b in item.branches))
        parts = [collate(items[i : i + BATCH], encoder) for i in range(0, len(items), BATCH)]
        rng.shuffle(parts)
        yield from parts


def loss_of(fast: Fast, batch: Batch) -> torch.Tensor:
    seen = fast.see(batch.pictures)
    states, _ = fast.hidden(batch.ids, seen.reshape(len(batch.ids), -1, seen.shape[-1]), batch.positions, batch.mask)
    wanted = batch.weights > 0
    words = F.cross_entropy(fast.logits(states[wanted]), batch.labels[wanted], reduction="none")
    return (words * batch.weights[wanted]).sum() / batch.weights.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2, 4])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_folder(Path(presets.resolve("reasoner", "micro").spec))
    small = shrunk(model, tokenizer, options.layers).train()
    fast, source = Fast(small), batches(Encoder(tokenizer), options.seed)
    optimizer = torch.optim.AdamW(small.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    start, step, mean = time.process_time(), 0, 0.0
    while (progress := (time.process_time() - start) / options.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * warmup_stable_decay(progress, decay=0.5)
        optimizer.zero_grad()
        loss = loss_of(fast, next(source))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(small.parameters(), 1.0)
        optimizer.step()
        step += 1
        mean = loss.item() if step == 1 else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"step {step} {time.process_time() - start:.0f} s loss {mean:.3f}", flush=True)
    save_folder(options.out, small.eval(), tokenizer)
    print(f"{sum(p.numel() for p in small.parameters()):,} weights in {options.out}")


if __name__ == "__main__":
    main()
