"""What every training adapter has to hold to, checked against the stock pipeline of diffusers.

A `Case` says how to build a pipeline with random weights, what the adapter is told and what the stock pipeline is told;
`CHECKS` are the rules by name. `tests/test_adapters.py` runs each on each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from premeditate.editors.pipelines import as_they_are
from premeditate.errors import ModelError
from premeditate.training.flow.adapters import ADAPTERS, FlowAdapter
from premeditate.training.lora import add_lora
from premeditate.training.recipe import Lora

Task = tuple[Sequence[Image.Image], str]
STEPS = 4


@dataclass(frozen=True, eq=False)
class Case:
    """`build`: a new pipeline. `options`: of the adapter. `call`: keywords of the stock pipeline that say the same.
    `tasks`: two of one shape with prompts of different lengths, then one of another shape. `too_long`: a prompt, and
    options with which it is one. `size`: of the working area."""

    build: Callable[[], Any]
    tasks: Sequence[Task]
    too_long: tuple[str, dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    size: int = 96

    def adapter(self, pipeline: Any = None, **options: Any) -> FlowAdapter:
        pipeline = self.build() if pipeline is None else pipeline
        kind = ADAPTERS[type(pipeline).__name__]
        return kind(pipeline, **{"size": self.size, **self.options, **options})


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def difference(a: Image.Image, b: Image.Image) -> int:
    assert a.size == b.size
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max())


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal but for the rounding of matrix products of another shape."""
    assert (found - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def euler(adapter: FlowAdapter, encodings: Sequence[Any], x: torch.Tensor, steps: int = STEPS) -> torch.Tensor:
    batch, sigmas = adapter.collate(encodings), adapter.sigmas(encodings[0], steps)
    with torch.no_grad():
        for now, after in pairwise(sigmas):
            x = x + (after - now) * adapter.velocity(x, now.expand(len(x)), batch)
    return x


def stock(adapter: FlowAdapter, case: Case, task: Task, x: torch.Tensor, steps: int = STEPS, **more: Any) -> Any:
    """What the pipeline itself makes of a task from these first latents [N, C]."""
    images, prompt = task
    pictures = [adapter.fit(image.size).apply(image) for image in images]
    width, height = pictures[0].size
    pipeline, many = adapter.pipeline, type(adapter.pipeline).__name__.endswith("PlusPipeline")
    with as_they_are(pipeline, pictures) if hasattr(pipeline, "processor") else nullcontext():
        return pipeline(
            image=pictures if many else pictures[0], prompt=prompt, latents=x[None].clone(), width=width, height=height,
            num_inference_steps=steps, **{**case.call, **more},
        ).images  # fmt: skip


@cache
def _shared(case: Case) -> tuple[FlowAdapter, list[Any]]:
    """One adapter for the checks that leave it as it is, and its tasks' encodings."""
    adapter = case.adapter()
    adapter.pipeline.set_progress_bar_config(disable=True)
    return adapter, [adapter.encode(*task) for task in case.tasks]


def _drawn(adapter: FlowAdapter, encodings: Sequence[Any], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and noise levels, one for each encoding."""
    x = torch.stack([adapter.noise(e, seed + i) for i, e in enumerate(encodings)])
    return x, torch.linspace(0.2, 0.9, len(encodings))


def _velocity(adapter: FlowAdapter, encodings: Sequence[Any], x: Any, sigma: Any, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return adapter.velocity(x, sigma, adapter.collate(encodings), **more)


# -- the rules ----------------------------------------------------------------------------------------------------


def same_pictures_as_stock(case: Case) -> None:
    adapter, encodings = _shared(case)
    for i, (task, encoding) in enumerate(zip(case.tasks, encodings, strict=True)):
        x = adapter.noise(encoding, i)
        assert tuple(x.shape) == adapter.noise_shape(encoding)
        ours = euler(adapter, [encoding], x[None])
        theirs = stock(adapter, case, task, x, output_type="latent")
        close(ours, theirs)
        wanted = adapter.fit(task[0][0].size).undo(stock(adapter, case, task, x)[0])
        assert wanted.size == task[0][0].size
        assert np.asarray(wanted).std() > 1, "a flat picture would prove nothing"
        assert difference(adapter.decode(ours, [encoding])[0], wanted) <= 1


def same_sigmas_as_stock(case: Case) -> None:
    adapter, encodings = _shared(case)
    for encoding, task in ((encodings[0], case.tasks[0]), (encodings[2], case.tasks[2])):
        for steps in (2, 5):
            stock(adapter, case, task, adapter.noise(encoding, 0), steps, output_type="latent")
            held = adapter.pipeline.scheduler.sigmas.clone()
            found = adapter.sigmas(encoding, steps)
            assert torch.equal(found, held)
            assert len(found) == steps + 1 and found[-1] == 0 and (found.diff() < 0).all()
            adapter.sigmas(encoding, 3)
            assert torch.equal(adapter.pipeline.scheduler.sigmas, held), "asking must not change the pipeline"


def the_task_matters(case: Case) -> None:
    """Otherwise the other rules could hold by accident."""
    adapter, (encoding, *_) = _shared(case)
    images, prompt = case.tasks[0]
    x, sigma = _drawn(adapter, [encoding])
    here = _velocity(adapter, [encoding], x, sigma)
    others = [(images, prompt + " blue"), ([picture(*images[0].size, seed=99), *images[1:]], prompt)]
    for task in others:
        assert (here - _velocity(adapter, [adapter.encode(*task)], x, sigma)).abs().max() > 1e-3
    assert (here - _velocity(adapter, [encoding], x, sigma / 2)).abs().max() > 1e-3


def encodes_the_same_each_time(case: Case) -> None:
    adapter, encodings = _shared(case)
    again = adapter.encode(*case.tasks[0])
    assert again.keys() == encodings[0].keys()
    for name, part in again.items():
        assert torch.equal(part, encodings[0][name])
        assert part.device.type == "cpu" and part.is_contiguous() and not part.requires_grad


def repeats_are_rows(case: Case) -> None:
    adapter, (first, second, _) = _shared(case)
    rows = [first, first, first, second, second, second]
    x, sigma = _drawn(adapter, rows)
    plain = _velocity(adapter, rows, x, sigma)
    with torch.no_grad():
        batch = adapter.collate([first, second], repeats=3)
        assert len(batch) == 6
        assert torch.equal(adapter.velocity(x, sigma, batch), plain)
        assert torch.equal(adapter.velocity(x, sigma, adapter.collate([first, second]).repeat(3)), plain)
        some = [4, 0, 4]
        found = adapter.velocity(x[some], sigma[some], batch.select(torch.tensor(some)))
    close(found, plain[some])


def batches_are_tasks_one_by_one(case: Case) -> None:
    """Tasks of one shape, prompts of different lengths, each row at its own noise level."""
    adapter, (first, second, _) = _shared(case)
    pair = [first, second]
    assert adapter.shape_key(first) == adapter.shape_key(second)
    x, sigma = _drawn(adapter, pair)
    together = _velocity(adapter, pair, x, sigma)
    assert together.shape == x.shape and together.dtype == torch.float32
    for i in range(2):
        alone = _velocity(adapter, pair[i : i + 1], x[i : i + 1], sigma[i : i + 1])
        close(together[i : i + 1], alone)


def shapes_have_keys(case: Case) -> None:
    adapter, (first, _, other) = _shared(case)
    assert adapter.shape_key(first) != adapter.shape_key(other)
    assert hash(adapter.shape_key(first)) == hash(adapter.shape_key(first))
    with pytest.raises(ValueError, match="shape_key"):
        adapter.collate([first, other])


def only_lora_is_trained(case: Case) -> None:
    adapter = case.adapter()
    encoding = adapter.encode(*case.tasks[0])
    trained = add_lora(adapter.transformer, Lora(rank=2))
    batch, (x, sigma) = adapter.collate([encoding]), _drawn(adapter, [encoding])
    adapter.velocity(x, sigma, batch).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trained)
    everything = {id(p) for part in adapter.pipeline.components.values() if isinstance(part, torch.nn.Module)
                  for p in part.parameters() if p.requires_grad or p.grad is not None}  # fmt: skip
    assert everything == {id(p) for p in trained}


def half_precision_gives_single(case: Case) -> None:
    """A velocity in fp32 that differs from the stock pipeline's step by what that rounds its latents to."""
    adapter = case.adapter(case.build().to(torch.bfloat16))
    adapter.pipeline.set_progress_bar_config(disable=True)
    encoding = adapter.encode(*case.tasks[0])
    assert encoding["text"].dtype == encoding["image"].dtype == torch.bfloat16
    x, (first, second, _) = adapter.noise(encoding, 0), adapter.sigmas(encoding, 2)
    after: list[torch.Tensor] = []

    def keep(pipeline: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        after.append(tensors["latents"].float())
        return tensors

    stock(adapter, case, case.tasks[0], x.bfloat16(), 2, callback_on_step_end=keep)
    wanted = (after[0] - x) / (second - first)
    found = _velocity(adapter, [encoding], x[None], first[None])
    assert found.dtype == torch.float32
    assert (found - wanted).norm() < 0.02 * wanted.norm()


def checkpointing_changes_nothing(case: Case) -> None:
    found = []
    for checkpointing in (False, True):
        adapter = case.adapter()
        if checkpointing:
            adapter.transformer.enable_gradient_checkpointing()
        trained = add_lora(adapter.transformer, Lora(rank=2))
        encoding = _shared(case)[1][0]
        x, sigma = _drawn(adapter, [encoding])
        velocity = adapter.velocity(x, sigma, adapter.collate([encoding]))
        velocity.square().mean().backward()
        found.append([velocity.detach(), *(p.grad for p in trained if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 1
    for plain, checkpointed in zip(*found, strict=True):
        close(plain, checkpointed)


def another_network_can_be_asked(case: Case) -> None:
    adapter, encodings = _shared(case)
    other = copy.deepcopy(adapter.transformer)
    with torch.no_grad():
        other.proj_out.weight.mul_(2)
    x, sigma = _drawn(adapter, encodings[:1])
    own = _velocity(adapter, encodings[:1], x, sigma)
    assert (own - _velocity(adapter, encodings[:1], x, sigma, network=other)).abs().max() > 1e-3
    assert torch.equal(own, _velocity(adapter, encodings[:1], x, sigma))


def long_prompts_are_refused(case: Case) -> None:
    prompt, options = case.too_long
    adapter = case.adapter(**options)
    with pytest.raises(ValueError, match=r"tokens, \d+ are read; (say it in|use) fewer words"):
        adapter.encode(case.tasks[0][0], prompt)


def no_picture_is_refused(case: Case) -> None:
    adapter, _ = _shared(case)
    with pytest.raises(ValueError, match="give at least one"):
        adapter.encode([], "red")


def works_after_release(case: Case) -> None:
    adapter = case.adapter()
    small = adapter.resized(case.size // 2)
    encoding = adapter.encode(*case.tasks[0])
    less = small.encode(*case.tasks[0])
    assert adapter.shape_key(encoding) != small.shape_key(less)
    fresh, known = case.adapter(), adapter.identity()
    adapter.release()
    x = adapter.noise(encoding, 0)[None]
    assert difference(
        adapter.decode(euler(adapter, [encoding], x), [encoding])[0],
        fresh.decode(euler(fresh, [encoding], x), [encoding])[0],
    ) == 0  # fmt: skip
    assert euler(small, [less], small.noise(less, 0)[None]).isfinite().all()
    assert known == adapter.identity() == fresh.identity() != small.identity()
    for one in (adapter, small):
        with pytest.raises(ModelError, match="released"):
            one.encode(*case.tasks[0])


CHECKS: dict[str, Callable[[Case], None]] = {
    check.__name__: check
    for check in (
        same_pictures_as_stock, same_sigmas_as_stock, the_task_matters, encodes_the_same_each_time, repeats_are_rows,
        batches_are_tasks_one_by_one, shapes_have_keys, only_lora_is_trained, half_precision_gives_single,
        checkpointing_changes_nothing, another_network_can_be_asked, long_prompts_are_refused, no_picture_is_refused,
        works_after_release,
    )
}  # fmt: skip
