"""Low-rank adapters (LoRA, arXiv 2106.09685) of a transformer: added, merged for a while, and left out for a while.

W x becomes W x + (alpha / rank) B A x. B starts at 0, so that training starts from the model as it is.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from premeditate.errors import ModelError
from premeditate.local import nearest
from premeditate.training import recipe
from premeditate.training.errors import TrainingError


def add_lora(transformer: Any, lora: recipe.Lora, *, seed: int = 0, within: str = "") -> list[nn.Parameter]:
    """Freezes the transformer and adds LoRA weights to the modules whose names end in `lora.targets`. Returns the
    weights, in fp32 whatever the transformer's dtype: an update of 1e-4 is lost in half precision.

    The first weights come from `seed`; the global generators are left as they were. `within`, errors: of `lora_config`.
    """
    config = lora_config(transformer, lora, within=within, init_lora_weights="gaussian")
    transformer.requires_grad_(False)
    with torch.random.fork_rng(devices=_cuda(transformer)):
        torch.manual_seed(seed)
        transformer.add_adapter(config)
    found = [p for p in transformer.parameters() if p.requires_grad]
    for parameter in found:
        parameter.data = parameter.data.float()
    return found


def lora_config(network: Any, lora: recipe.Lora, *, within: str = "", **options: Any) -> Any:
    """peft's configuration of `lora` for a network. `within`: only modules inside the part of that name (some picture
    encoders have layers of the same names as the language model). `options`: further ones of peft's. Raises
    `ModelError` for a target that names no linear layer there."""
    from peft import LoraConfig

    linear = {name for name, part in network.named_modules() if isinstance(part, nn.Linear)}
    linear = {name for name in linear if f".{within}." in f".{name}"} if within else linear
    for target in lora.targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            ends = sorted({_end(name) for name in linear})
            where = f"the {within.replace('_', ' ')}" if within else type(network).__name__
            raise ModelError(
                f"{where} has no linear layer {target!r} for LoRA",
                f"did you mean {nearest(target, ends)}? It has {', '.join(ends)}",
            )
    named = "|".join(re.escape(target) for target in lora.targets)
    targets = rf"(.*\.)?{re.escape(within)}\.(.*\.)?({named})" if within else list(lora.targets)
    return LoraConfig(r=lora.rank, lora_alpha=lora.rank if lora.alpha is None else lora.alpha, target_modules=targets,
                      **options)  # fmt: skip


def make_trainable(network: Any, lora: recipe.Lora | None, *, seed: int, reference: bool, within: str = "") -> Any:
    """Makes adapters what is trained, or without `lora` what of the network is not frozen. Returns a frozen copy of it
    as it was, where a `reference` is asked for and there are no adapters to leave out; else None. Raises as
    `add_lora`."""
    if lora is not None:
        add_lora(network, lora, seed=seed, within=within)
        return None
    return copy.deepcopy(network).requires_grad_(False) if reference else None


@contextmanager
def merged(transformer: nn.Module) -> Iterator[None]:
    """Inside, the LoRA weights are added to those below them, so that a forward costs what it does without LoRA; no
    gradient reaches them. Outside, every weight is bit for bit what it was, whatever happened inside.

    The touched weights are held twice meanwhile. In half precision the sum is rounded: sampling and training then
    differ by that rounding, which the trainer measures. Without LoRA: nothing.
    """
    layers = _layers(transformer)
    bases = [layer.get_base_layer() for layer in layers]
    kept = [base.weight.data for base in bases]
    try:
        for layer in layers:
            # "Safe" puts a new tensor in the weight's place: the old one is never written to.
            try:
                layer.merge(safe_merge=True)
            except ValueError as error:  # the one thing that peft looks at
                raise TrainingError(
                    "the LoRA weights are not finite",
                    "go on from the last checkpoint (--resume), or start again with a lower optimizer.lr",
                ) from error
        yield
    finally:
        for layer, base, weight in zip(layers, bases, kept, strict=True):
            base.weight.data = weight
            layer.merged_adapters.clear()


@contextmanager
def reference(transformer: nn.Module) -> Iterator[None]:
    """Inside, the model is what it was before training: LoRA is left out. Which weights are trained stays as it was.
    Raises ValueError without LoRA."""
    layers = _layers(transformer)
    if not layers:
        raise ValueError("the transformer has no LoRA to leave out; keep a frozen copy of it instead")
    trained = [(p, p.requires_grad) for p in transformer.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, flag in trained:
            parameter.requires_grad_(flag)


def _layers(transformer: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [part for part in transformer.modules() if isinstance(part, LoraLayer)]


def _end(name: str) -> str:
    """The end of a module's name that tells what it is: "to_q", "to_out.0"."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() and len(parts) > 1 else parts[-1]


def _cuda(transformer: nn.Module) -> list[torch.device]:
    return list({p.device for p in transformer.parameters() if p.device.type == "cuda"})
