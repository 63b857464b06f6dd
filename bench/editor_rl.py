"""What a step of editor RL costs, beside a plain loop that makes the forwards of the published trainers.

    OMP_NUM_THREADS=1 python bench/editor_rl.py [--quick] [--json] [--repeats 5]

A FLUX.1-Kontext with random weights, 128 px, fp32: 16 edits an epoch in groups of 4, 10 denoising steps of which 2 are
trained, LoRA of rank 32, batches of 4 in the plain loop (bench/peer_loop.py). All ways are run in turn in one process,
on one thread; figures are process CPU seconds, the median over the repeats. Exits with 1 where a figure is missed.

Most of what is won here is padding, of which there is much at 128 px: 512 tokens of text for 128 of pictures. FLUX
attends to it, so leaving it out changes what the model is conditioned on (for Qwen-Image-Edit it changes nothing); the
rows with the same padding say what the rest brings.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import peer_loop as peer
from figures import Figure, conclude, options, timed

from premeditate.datasets.tasks import TaskRow
from premeditate.rewards.base import Sample
from premeditate.rewards.panel import Panel, build_panel
from premeditate.training.distributed import World
from premeditate.training.flow.adapters.kontext import KontextAdapter
from premeditate.training.flow.policy import FlowPolicy, Tasks
from premeditate.training.loop import Parts, Trainer
from premeditate.training.lora import add_lora
from premeditate.training.policy import Place
from premeditate.training.recipe import Recipe

PROMPTS = ("paint the ball red", "make the small box green and round", "remove it", "put the ring at the left")
GUIDANCE = 2.5
FORWARD = 16
PLAIN, PLAIN_NFT = "plain loop: Flow-GRPO", "plain loop: NFT at all 10 levels"
PADDED, UNPADDED = "text padded as in the plain loop", "text not padded"
FEWER = "Flow-GRPO with shared prefix, AB2 and half the ODE steps"


def brightness(samples: Sequence[Sample]) -> list[float | None]:
    """The reward: mean brightness of the edit, 0-1."""
    return [float(np.asarray(sample.edit, dtype=np.float32).mean()) / 255 for sample in samples]


def tasks() -> list[TaskRow]:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (len(PROMPTS), 8, 8, 3), dtype=np.uint8)
    large = [Image.fromarray(p).resize((peer.PIXELS, peer.PIXELS), Image.Resampling.BICUBIC) for p in pictures]
    return [TaskRow(f"t{i}", (im,), text) for i, (im, text) in enumerate(zip(large, PROMPTS, strict=True))]


def recipe(
    algorithm: str, *, text: int | str, share: bool = False, fewer: bool = False, timesteps: int = peer.STEPS
) -> Recipe:
    return Recipe.model_validate({
        "model": {"base": "-", "size": peer.PIXELS, "text_tokens": text, "lora": {"rank": 32, "targets": peer.TARGETS}},
        "rewards": [{"use": "editor_rl:brightness"}],
        "rollout": {
            "steps": peer.STEPS, "noise_level": peer.NOISE, "share_prefix": share,
            "window": {"kind": "fixed", "first": peer.TRAINED[0], "size": len(peer.TRAINED)},
            **({"solver": "ab2", "compress": 0.5} if fewer else {}),
        },
        "algorithm": {"name": algorithm, "timesteps": timesteps},
        "batch": {"groups": peer.GROUPS, "group_size": peer.GROUP, "forward": FORWARD},
        "optimizer": {"lr": 3e-4, "betas": (0.9, 0.999), "weight_decay": 0.01},
    })  # fmt: skip


class Ours:
    """The package's trainer on a pipeline of its own."""

    def __init__(self, recipe: Recipe, rows: Sequence[TaskRow], panel: Panel) -> None:
        self.recipe = recipe
        model = recipe.model
        adapter = KontextAdapter(
            peer.build_kontext(), size=model.size, text_tokens=model.text_tokens, guidance_scale=GUIDANCE
        )
        encodings = [adapter.encode(row.images, row.instruction) for row in rows]
        assert model.lora is not None
        add_lora(adapter.transformer, model.lora)
        self.policy = FlowPolicy(recipe, Tasks(adapter, rows, encodings), None, World())
        self.trainer = Trainer(recipe, Parts(self.policy, panel, panel, len(rows), 0), World(), Path("."), None)

    def step(self) -> dict[str, float]:
        figures = self.trainer.train_step()
        self.trainer.step += 1
        return figures

    def draws(self, step: int = 0) -> tuple[list[Tensor], list[Tensor], list[int]]:
        """The noise of a step, for the plain loop: first [4] of [4, N, C], later [4] of [4, S, N, C]; and the tasks."""
        policy, members = self.policy, range(self.recipe.batch.group_size)
        order = self.trainer.order.at(step)
        first, later = [], []
        for i, row in enumerate(order):
            place, encoding = Place(step, i, row), policy.train.encodings[row]
            shape = (len(peer.TRAINED), *policy.adapter.noise_shape(encoding))
            first.append(torch.stack([policy.adapter.noise(encoding, policy.seed(place, m, "start")) for m in members]))
            generators = [torch.Generator().manual_seed(policy.seed(place, m, "steps")) for m in members]
            later.append(torch.stack([torch.randn(shape, generator=g) for g in generators]))
        return first, later, order


def plain(rows: Sequence[TaskRow], text: int) -> peer.PeerLoop:
    return peer.PeerLoop(peer.build_kontext(), [(row.images[0], row.instruction) for row in rows], text=text)


def same_start(rows: Sequence[TaskRow], panel: Panel) -> dict[str, float]:
    """The first update of both, from the same weights and noise: differences of loss, gradient and pictures."""
    ours = Ours(recipe("flow-grpo", text=peer.TEXT), rows, panel)
    first, later, order = ours.draws()
    theirs = plain([rows[i] for i in order], peer.TEXT)
    for mine, its in zip(ours.trainer.named.values(), theirs.trained, strict=True):
        its.data.copy_(mine.data)
    result, figures = theirs.grpo(first, later), ours.step()
    gradient = torch.cat([p.grad.flatten() for p in ours.trainer.named.values() if p.grad is not None])
    return {
        "loss": abs(result.loss - figures["loss"]),
        "gradient": float((gradient - result.gradient).norm() / result.gradient.norm()),
        "replay": figures["mismatch"],
    }


def bare(ours: Ours) -> Callable[[], None]:
    """The same forwards and backwards as a step of `ours`, and the decoding, with nothing around them."""
    policy, batch = ours.policy, ours.recipe.batch
    adapter, count = policy.adapter, batch.groups * batch.group_size
    encodings = [policy.train.encodings[i] for i in ours.trainer.order.at(0)]
    rows = adapter.collate(encodings, batch.group_size).rows()
    grids = adapter.grids(encodings[0])
    x = torch.randn(count, *adapter.noise_shape(encodings[0]))
    level = torch.rand(count)
    trained = len(peer.TRAINED) if ours.recipe.algorithm.name == "flow-grpo" else ours.recipe.algorithm.timesteps

    def run() -> None:
        with torch.no_grad(), policy._merged():
            for _ in range(peer.STEPS):
                adapter.predict(adapter.transformer, x, level, rows, grids)
            adapter.decode(x, [e for e in encodings for _ in range(batch.group_size)])
        adapter.transformer.zero_grad()
        for _ in range(trained):
            adapter.predict(adapter.transformer, x, level, rows, grids).sum().backward()

    return run


def main() -> int:
    args = options(__doc__)
    rows = tasks()
    say: Callable[[str], None] = (lambda line: None) if args.json else print
    with build_panel(recipe("flow-grpo", text="real").rewards) as panel:
        ways: dict[str, Callable[[], Any]] = {}
        reference = plain(rows, peer.TEXT)
        exact = Ours(recipe("flow-grpo", text=peer.TEXT), rows, panel)
        first, later, _ = exact.draws()
        fresh = [torch.randn(peer.GROUP, peer.STEPS, *f.shape[1:]) for f in first]
        ways[PLAIN] = lambda: reference.grpo(first, later)
        ways[PLAIN_NFT] = lambda: reference.nft(first, later, fresh)
        for padding, text in ((PADDED, peer.TEXT), (UNPADDED, "real")):
            run = exact if text == peer.TEXT else Ours(recipe("flow-grpo", text=text), rows, panel)
            ways[f"Flow-GRPO, {padding}"] = run.step
            ways[f"bare forwards, {padding}"] = bare(run)
            ways[f"{FEWER}, {padding}"] = Ours(recipe("flow-grpo", text=text, share=True, fewer=True), rows, panel).step
            ways[f"NFT at 2 levels, {padding}"] = Ours(recipe("nft", text=text, timesteps=2), rows, panel).step
        if not args.quick:
            timed(ways, 1)  # warms up
        seconds = timed(ways, args.repeats)
        start_figures = same_start(rows, panel)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    times = {name: median[PLAIN_NFT if "NFT" in name else PLAIN] / value for name, value in median.items()}
    for name, value in median.items():
        say(f"{value:8.3f} s  {times[name]:5.2f} x  {name}")
    figures = [
        Figure("Flow-GRPO, times faster than the plain loop", times[f"Flow-GRPO, {UNPADDED}"], 1.6),
        Figure("with a shared prefix and AB2, times faster", times[f"{FEWER}, {UNPADDED}"], 2.0),
        Figure("NFT, times faster", times[f"NFT at 2 levels, {UNPADDED}"], 2.5),
        Figure("NFT with the plain loop's padding, times faster", times[f"NFT at 2 levels, {PADDED}"], 2.5),
        *(
            Figure(f"overhead over bare forwards, {padding}", median[f"Flow-GRPO, {padding}"]
                   / median[f"bare forwards, {padding}"] - 1, 0.05, least=False)
            for padding in (PADDED, UNPADDED)
        ),
        Figure("difference of the first loss", start_figures["loss"], 1e-5, least=False),
        Figure("relative difference of the first gradient", start_figures["gradient"], 1e-3, least=False),
        Figure("replayed minus sampled log-probability", start_figures["replay"], 1e-6, least=False),
    ]  # fmt: skip
    return conclude(figures, args, seconds=seconds, median=median)


if __name__ == "__main__":
    sys.exit(main())
