"""Models run without contents, to learn what a forward and a backward would need.

Everything lies on torch's meta device: tensors have shapes and types, and no memory. The classes are the real ones, so
are autograd, LoRA and gradient checkpointing; a ledger follows the birth and the death of every storage. A transformer
is run with few blocks: all blocks of a kind need the same, so that the rest follows exactly.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from premeditate.training import recipe

LAYERS = ("num_layers", "num_single_layers")
BLOCK = 512
"""Bytes that CUDA's allocator rounds up to."""


class Ledger(TorchDispatchMode):
    """Bytes of the storages that are made while it is entered: `now`, and the most there were, `peak`."""

    def __init__(self, *known: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        for module in known:
            for tensor in (*module.parameters(), *module.buffers()):
                for part in (tensor, tensor.grad):
                    if part is not None:
                        self._note(part)
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return found

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = -(-storage.nbytes() // BLOCK) * BLOCK
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


@dataclass
class Attention:
    """Floating-point operations of the attention so far: 4 B H N M d for N queries, M keys, H heads of d dimensions."""

    flops: int = 0


_lock = threading.Lock()


@contextmanager
def contentless(dtype: torch.dtype) -> Iterator[Attention]:
    """A context in which what is made has no memory; floating-point tensors are of `dtype` unless told otherwise.

    Attention is done as the fused kernels do it: nothing of tokens x tokens is kept. torch itself would not, without
    contents. (A mode of torch's would be neater, but the forward that checkpointing repeats escapes it.)
    """
    functional, count = nn.functional, Attention()
    usual = functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        if not query.is_meta:  # of another thread
            return usual(query, key, value, *args, **options)
        count.flops += 4 * query.numel() * key.shape[-2]
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]

    with _lock:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        functional.scaled_dot_product_attention = attention
        try:
            with torch.device("meta"):
                yield count
        finally:
            functional.scaled_dot_product_attention = usual
            torch.set_default_dtype(before)


def build(kind: str, config: Mapping[str, Any], layers: Mapping[str, int] | None = None) -> Any:
    """The model of diffusers' class `kind`, frozen, with so many blocks of each kind (None: all)."""
    import diffusers

    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    return getattr(diffusers, kind).from_config({**plain, **(layers or {})}).requires_grad_(False)


@dataclass(frozen=True)
class Work:
    """A forward of a transformer. `rows`: in the batch. `grids`: rows and columns of tokens of the pictures that it
    makes and reads. `text`: tokens."""

    rows: int
    grids: Sequence[tuple[int, int]]
    text: int
    dtype: torch.dtype


def forward(kind: str, config: Mapping[str, Any], work: Work) -> tuple[int, int]:
    """Bytes beside its weights that a forward of the whole transformer needs, and its floating-point operations."""

    def measure(layers: Mapping[str, int]) -> tuple[int, int]:
        with contentless(work.dtype) as attention, torch.no_grad():
            model = build(kind, config, layers)
            flops = _flops(lambda: _run(model, work)) + attention.flops
            return _peak(model, lambda: _run(model, work)), flops

    peak, flops = _whole(config, measure)
    return peak, flops


def training(
    kind: str,
    config: Mapping[str, Any],
    work: Work,
    *,
    lora: recipe.Lora | None,
    checkpointing: bool = False,
    reference: bool = False,
) -> tuple[int, int]:
    """Bytes beside weights and gradients that a forward and backward of the whole transformer need, and how many of
    them wait for the backward.

    `lora`: what is trained beside the frozen weights; None: all of them. `reference`: a forward of the model before
    training is made while the trained one waits.
    """

    def measure(layers: Mapping[str, int]) -> tuple[int, int]:
        with contentless(work.dtype):
            model = trainable(build(kind, config, layers), lora, checkpointing)
            with Ledger(model) as ledger:
                found = _run(model, work).float()
                kept = ledger.now
                if reference:
                    with torch.no_grad():
                        _run(model, work)
                found.square().mean().backward()
            return ledger.peak, kept

    peak, kept = _whole(config, measure)
    return peak, kept


def trainable(model: Any, lora: recipe.Lora | None, checkpointing: bool) -> Any:
    """`model` as it is trained, with gradients, which are counted elsewhere."""
    if lora is None:
        model.requires_grad_(True)
    else:
        from premeditate.training.lora import add_lora

        add_lora(model, lora)
    if checkpointing:
        model.enable_gradient_checkpointing()
    for p in model.train().parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    return model


def _whole(config: Mapping[str, Any], measure: Callable[[Mapping[str, int]], tuple[int, int]]) -> list[int]:
    """What `measure` would find with all blocks, from a few of each kind: each further one adds the same."""
    counts = {name: int(config[name]) for name in LAYERS if name in config}
    few = {name: min(2, count) for name, count in counts.items()}
    first = measure(few)
    total = list(first)
    for name, count in counts.items():
        if count > few[name]:
            more = measure({**few, name: few[name] + 1})
            total = [t + (count - few[name]) * (b - a) for t, a, b in zip(total, first, more, strict=True)]
    return total


def _peak(model: nn.Module, run: Callable[[], Any]) -> int:
    with Ledger(model) as ledger:
        run()
    return ledger.peak


def _flops(run: Callable[[], Any]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def _run(model: Any, work: Work) -> Tensor:
    config, wanted = model.config, inspect.signature(type(model).forward).parameters
    rows, text, image = work.rows, work.text, sum(height * width for height, width in work.grids)
    given: dict[str, Callable[[], Any]] = {
        "hidden_states": lambda: torch.empty(rows, image, config.in_channels),
        "encoder_hidden_states": lambda: torch.empty(rows, text, config.joint_attention_dim),
        "pooled_projections": lambda: torch.empty(rows, config.pooled_projection_dim),
        "timestep": lambda: torch.empty(rows),
        "guidance": lambda: torch.empty(rows) if config.get("guidance_embeds") else None,
        "img_ids": lambda: torch.empty(image, 3, dtype=torch.float32),
        "txt_ids": lambda: torch.empty(text, 3, dtype=torch.float32),
        "img_shapes": lambda: [[(1, *grid) for grid in work.grids]] * rows,
        "return_dict": lambda: False,
    }
    found: Tensor = model(**{name: make() for name, make in given.items() if name in wanted})[0]
    return found


def decoding(kind: str, config: Mapping[str, Any], pictures: int, height: int, width: int, dtype: torch.dtype) -> int:
    """Bytes beside its weights that the autoencoder needs to decode so many latents of height x width."""
    with contentless(dtype), torch.no_grad():
        vae = build(kind, config).eval()
        video = "z_dim" in config
        channels = int(config["z_dim"] if video else config["latent_channels"])
        latents = torch.empty(pictures, channels, *([1] if video else []), height, width)
        return _peak(vae, lambda: vae.decode(latents, return_dict=False))


@dataclass(frozen=True)
class Census:
    """A model's parameters, and the (inputs, outputs) of its linear layers by name."""

    parameters: int
    linear: Mapping[str, tuple[int, int]]


def census(kind: str, config: Mapping[str, Any]) -> Census:
    """Counted on the whole model."""
    with contentless(torch.float32):
        model = build(kind, config)
        linear = {n: (m.in_features, m.out_features) for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        return Census(sum(p.numel() for p in model.parameters()), linear)
