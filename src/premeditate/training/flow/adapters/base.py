"""Flow editors behind one protocol: what sampling, training and caching need of a diffusers pipeline.

    task -- encode --> encoding -- collate --> batch -- velocity --> v -- (solver, SDE) --> x -- decode --> picture

Legend of shapes: n tasks, B rows, N tokens of the picture that is made (a token is a 2x2 patch of latents), M tokens of
the pictures that are read, L text tokens, C channels of a token, D channels of the text.

Noise level sigma goes from 1 (noise) to 0 (data): x_sigma = (1 - sigma) x_0 + sigma eps, and the velocity predicts
eps - x_0, so that a Euler step is x + (sigma_next - sigma) v (flow matching, arXiv 2210.02747, rectified flow
2209.03003). That is also what diffusers' `FlowMatchEulerDiscreteScheduler` does.

`docs/adapters.md` tells how to write one.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from premeditate.editors.fit import Fit, Size
from premeditate.editors.pipelines import TRAITS, Traits, image_multiple
from premeditate.errors import ModelError
from premeditate.training.weights import fingerprint

Encoding = Mapping[str, Tensor]
Grid = tuple[int, int]
"""Rows and columns of tokens."""
NEGATIVE = "negative_"
"""How the parts of an encoding begin that classifier-free guidance puts in place of others."""
DECODED = 1 << 22
"""Pixels that the autoencoder decodes at once, so that a large batch does not need more memory than the denoiser."""


@dataclass(frozen=True)
class Batch:
    """Rows for a forward: row i belongs to task index[i]. What a task needs is held once, however many rows it has.

    `parts`: tensors [n, ...] of what `FlowAdapter.velocity` needs. `index` [B]: int64, where `parts` are. `grids`: the
    tokens of the picture that is made and of each that is read, the same for all tasks.
    """

    parts: Mapping[str, Tensor]
    index: Tensor
    grids: tuple[Grid, ...]

    def __len__(self) -> int:
        return len(self.index)

    def select(self, index: Tensor | Sequence[int]) -> Batch:
        """The rows at these positions, in this order; one may come more than once."""
        return replace(self, index=self.index[torch.as_tensor(index, device=self.index.device)])

    def repeat(self, times: int) -> Batch:
        """Every row `times` times, the copies adjacent: the order of a [B, times] tensor that is flattened."""
        return replace(self, index=self.index.repeat_interleave(times))

    def rows(self) -> dict[str, Tensor]:
        """`parts` with one entry for each row: [B, ...]."""
        return {name: part[self.index] for name, part in self.parts.items()}


class FlowAdapter(ABC):
    """A diffusers pipeline whose transformer is trained. Everything else of it is frozen and in evaluation mode.

    `size`: the working area is about size x size pixels at the source's aspect, as for `DiffusersEditor`.
    `guidance_scale`: for transformers that are told it. `true_cfg_scale`: above 1 the network is asked a second time,
    with `negative_prompt`. None: the pipeline's default. `text_tokens`: prompts are padded to this many tokens; None:
    as the pipeline does it; "real": not at all. Raises `ModelError`.
    """

    pipeline_class: ClassVar[str]
    """The class in diffusers, for example "FluxKontextPipeline"."""
    exact_text: ClassVar[bool]
    """True: padding is masked, so that its amount does not change velocities. False: the model was trained to see it,
    and `text_tokens` changes what it is conditioned on."""

    def __init__(
        self,
        pipeline: Any,
        *,
        size: int,
        guidance_scale: float | None = None,
        true_cfg_scale: float | None = None,
        text_tokens: int | Literal["real"] | None = None,
        negative_prompt: str = " ",
    ) -> None:
        kind = type(pipeline).__name__
        parameters = inspect.signature(type(pipeline).__call__).parameters

        def scale(name: str, given: float | None) -> float:
            return float(parameters[name].default or 0.0) if given is None and name in parameters else given or 0.0

        self.pipeline = pipeline
        self.size = size
        self.guidance_scale = scale("guidance_scale", guidance_scale)
        self.true_cfg_scale = scale("true_cfg_scale", true_cfg_scale)
        self.text_tokens = text_tokens
        self.negative_prompt = negative_prompt
        self.dtype: torch.dtype = pipeline.transformer.dtype
        """Of the transformer's weights: taken before LoRA adds weights of another."""
        self.device: torch.device = pipeline.transformer.device
        self.channels = int(pipeline.transformer.config.in_channels)
        self._traits = TRAITS.get(kind, Traits())
        self._multiple = self._traits.multiple or image_multiple(pipeline)
        self._identity: dict[str, Any] | None = None
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module):
                part.eval()
                if name != "transformer":
                    part.requires_grad_(False)

    # -- for each model -----------------------------------------------------------------------------------------------

    @abstractmethod
    def encode_text(self, pictures: Sequence[Image.Image], prompt: str) -> dict[str, Tensor]:
        """What the text encoders make of a prompt: "text" [L, D] and any others, without a batch dimension. Raises
        ValueError for a prompt that is too long."""

    @abstractmethod
    def encode_image(self, picture: Image.Image) -> Tensor:
        """The latents [c, h, w] of a picture at its working size, normalised as the transformer reads them."""

    @abstractmethod
    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in -1..1 of normalised latents [B, c, h, w] in the autoencoder's dtype."""

    @abstractmethod
    def predict(
        self, network: nn.Module, x_BNC: Tensor, timestep_B: Tensor, rows: Mapping[str, Tensor], grids: Sequence[Grid]
    ) -> Tensor:
        """One call of the transformer: velocities [B, N, C]. `x_BNC` and `timestep_B` (0-1) are in its dtype. `rows`:
        of the encodings, and "text_mask" [B, L] (bool, True: a token) where padding must not be seen."""

    def guide(self, conditional: Tensor, negative: Tensor) -> Tensor:
        """Classifier-free guidance (arXiv 2207.12598) by `true_cfg_scale`; velocities [B, N, C] in fp32."""
        return negative + self.true_cfg_scale * (conditional - negative)

    def encoders(self) -> dict[str, nn.Module]:
        """The parts that only `encode` needs, by name."""
        return {name: part for name in ("text_encoder", "text_encoder_2")
                if (part := getattr(self.pipeline, name, None)) is not None}  # fmt: skip

    def shared(self) -> Mapping[str, Tensor]:
        """Parts of an encoding that are the same for every task, and so are not kept with each."""
        return {}

    # -- for all ------------------------------------------------------------------------------------------------------

    @property
    def transformer(self) -> nn.Module:
        """The network that is trained."""
        return self.pipeline.transformer

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is on."""
        return self.true_cfg_scale > 1

    @property
    def passes(self) -> int:
        """Rows that the transformer computes for one row of `velocity`: 2 with classifier-free guidance, else 1."""
        return 2 if self.guided else 1

    def resized(self, size: int) -> FlowAdapter:
        """The same pipeline at another working size."""
        other = copy.copy(self)
        other.size, other._identity = size, {**self.identity(), "size": size}
        return other

    def check(self, images: Sequence[Image.Image], prompt: str) -> None:
        """Raises ValueError, with the mend, for what can be seen to be wrong with a task before it is encoded."""
        if not images:
            raise ValueError("the task has no image; give at least one")
        if len(images) > 1 and not self._traits.many:
            raise ValueError(f"{self.pipeline_class} reads one image, the task has {len(images)}; leave out the rest")

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image], prompt: str) -> dict[str, Tensor]:
        """All that forwards and `decode` need of a task, without a batch dimension and on the CPU, fit for a cache.

        The first picture is the one that is edited: its aspect is the result's. Raises ValueError with the mend for no
        or too many pictures and for a prompt that is too long.
        """
        if not self.encoders():
            raise ModelError("the encoders were released", "encode every task before release()")
        self.check(images, prompt)
        pictures = [self.fit(image.size).apply(image) for image in images]
        found = self.encode_text(pictures, prompt)
        found["image"] = torch.cat([pack(self.encode_image(picture)[None])[0] for picture in pictures])
        found = {name: part.detach().to("cpu").contiguous() for name, part in found.items()}
        sizes = [images[0].size, *(picture.size for picture in pictures)]
        return {**found, "sizes": torch.tensor(sizes, dtype=torch.int64)}

    def fit(self, source: Size) -> Fit:
        """How a picture of this size is brought to its working size, and back."""
        return Fit.plan(source, self.size, self._multiple, self._traits.least, self._traits.most)

    def shape_key(self, encoding: Encoding) -> Hashable:
        """Tasks with equal keys can share a batch. Texts of different lengths can."""
        return self.grids(encoding)

    def grids(self, encoding: Encoding) -> tuple[Grid, ...]:
        """Tokens of the picture that is made, then of each picture that is read."""
        _, *sizes = encoding["sizes"].tolist()
        side = self.pipeline.vae_scale_factor * 2
        read = [(height // side, width // side) for width, height in sizes]
        return read[0], *read

    def noise_shape(self, encoding: Encoding) -> tuple[int, int]:
        """(N, C) of one sample's latents."""
        (rows, columns), *_ = self.grids(encoding)
        return rows * columns, self.channels

    def noise(self, encoding: Encoding, seed: int) -> Tensor:
        """The first noise [N, C] that the pipeline would draw for `seed`, in fp32 on the CPU: `premeditate edit` with
        this seed starts from the same."""
        (rows, columns), *_ = self.grids(encoding)
        generator = torch.Generator("cpu").manual_seed(seed)
        shape = (1, self.channels // 4, 2 * rows, 2 * columns)
        return pack(torch.randn(shape, generator=generator, dtype=self.dtype))[0].float()

    def collate(self, encodings: Sequence[Encoding], repeats: int = 1) -> Batch:
        """Tasks of one `shape_key` as a batch on the device: `repeats` adjacent rows of each."""
        grids = self.grids(encodings[0])
        if any(self.grids(e) != grids for e in encodings):
            raise ValueError("the tasks have different shapes; put those of one shape_key into a batch")
        shared = self.shared()
        tasks = [{**shared, **e} for e in encodings]
        names = [name for name in tasks[0] if name != "sizes"]
        texts = ["text", *([NEGATIVE + "text"] if self.guided else [])]
        lengths = {name: [len(task[name]) for task in tasks] for name in texts}
        fixed = self.text_tokens if isinstance(self.text_tokens, int) else 0
        longest = max(fixed, *(max(of) for of in lengths.values()))
        parts = {}
        for name in names:
            if name in lengths:
                parts[name] = torch.stack([_padded(task[name], longest) for task in tasks])
                if any(length < longest for of in lengths.values() for length in of):
                    places = torch.arange(longest)
                    parts[f"{name}_mask"] = places < torch.tensor(lengths[name])[:, None]
            elif self.guided or not name.startswith(NEGATIVE):
                parts[name] = torch.stack([task[name] for task in tasks])
        parts = {name: part.to(self.device, non_blocking=True) for name, part in parts.items()}
        index = torch.arange(len(encodings), device=self.device).repeat_interleave(repeats)
        return Batch(parts, index, grids)

    def sigmas(self, encoding: Encoding, steps: int) -> Tensor:
        """Noise levels [steps + 1] in fp32 on the CPU, from the highest to 0: those of the pipeline's scheduler for
        this task's size, its shift and terminal value included. Raises ValueError for a single step of a scheduler with
        a terminal value."""
        pipeline = self.pipeline
        scheduler = copy.deepcopy(pipeline.scheduler)
        shift = sys.modules[type(pipeline).__module__].calculate_shift
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        values = [scheduler.config.get(n, d) for n, d in zip(names, (256, 4096, 0.5, 1.15), strict=True)]
        mu = shift(self.noise_shape(encoding)[0], *values)
        with np.errstate(invalid="ignore"):
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        if not scheduler.sigmas.isfinite().all():
            raise ValueError(f"the noise levels of this model cannot be cut into {steps} steps; give at least 2")
        return scheduler.sigmas.float().cpu()

    def velocity(self, x_BNC: Tensor, sigma_B: Tensor, batch: Batch, *, network: nn.Module | None = None) -> Tensor:
        """Velocities [B, N, C] in fp32 at latents [B, N, C] whose noise levels [B] may differ, guided as the pipeline
        guides. `network`: another copy of the transformer to ask. Gradients flow as grad mode says."""
        network = self.transformer if network is None else network
        x = x_BNC.to(self.dtype)
        # Rounded where the pipeline rounds: half precision tells neighbouring noise levels apart only so far.
        timestep = (sigma_B.to(x.device) * 1000).to(self.dtype) / 1000
        rows = batch.rows()
        plain = {name: part for name, part in rows.items() if not name.startswith(NEGATIVE)}
        if not self.guided:
            return self.predict(network, x, timestep, plain, batch.grids).float()
        # Both conditions in one call: a sharded network gathers its weights once.
        both = {name: torch.cat([part, rows.get(NEGATIVE + name, part)]) for name, part in plain.items()}
        v = self.predict(network, torch.cat([x, x]), torch.cat([timestep, timestep]), both, batch.grids).float()
        return self.guide(*v.chunk(2))

    @torch.no_grad()
    def decode(self, x_BNC: Tensor, encodings: Sequence[Encoding]) -> list[Image.Image]:
        """The pictures of latents [B, N, C] without noise, aligned with each row's source and of its size."""
        if not len(x_BNC):
            return []
        grid, *_ = self.grids(encodings[0])
        works = [Fit.into(tuple(e["sizes"][0].tolist()), tuple(e["sizes"][1].tolist())) for e in encodings]
        at_once = max(1, DECODED // (works[0].work[0] * works[0].work[1]))
        pictures: list[Image.Image] = []
        for part in x_BNC.split(at_once):
            found = self.decode_latents(unpack(part.to(self.pipeline.vae.dtype), grid))
            pictures += self.pipeline.image_processor.postprocess(found.float(), output_type="pil")
        return [fit.undo(picture) for fit, picture in zip(works, pictures, strict=True)]

    def release(self) -> None:
        """Gives up the text encoders and the encoding half of the autoencoder, which nothing needs once every task is
        encoded. `encode` raises `ModelError` from then on, also that of `resized` copies."""
        self.identity()
        self.shared()
        for name in self.encoders():
            setattr(self.pipeline, name, None)
        self.pipeline.vae.encoder = nn.Identity()  # Qwen's autoencoder counts its layers before it decodes

    def identity(self) -> dict[str, Any]:
        """What decides an encoding beside the task, as JSON: the settings, the versions, and a digest of the encoders'
        weights, so that a model is known again wherever it lies and a retrained one is not taken for it."""
        if self._identity is None:
            self._identity = {
                "adapter": type(self).__name__, "pipeline": self.pipeline_class, "size": self.size,
                "text_tokens": self.text_tokens, "negative_prompt": self.negative_prompt if self.guided else None,
                "libraries": [f"{name} {sys.modules[name].__version__}" for name in ("diffusers", "transformers")],
                "weights": self._weights(),
            }  # fmt: skip
        return self._identity

    def _weights(self) -> str:
        found = hashlib.sha256(fingerprint({**self.encoders(), "vae": self.pipeline.vae}).encode())
        for name, part in self.pipeline.components.items():
            if hasattr(part, "get_vocab"):
                found.update(json.dumps([name, sorted(part.get_vocab().items())]).encode())
        return found.hexdigest()


def pack(latents_BCHW: Tensor) -> Tensor:
    """Latents [B, c, h, w] as tokens [B, h/2 w/2, 4c], one for each 2x2 patch, row by row."""
    return nn.functional.pixel_unshuffle(latents_BCHW, 2).flatten(2).transpose(1, 2)


def unpack(x_BNC: Tensor, grid: Grid) -> Tensor:
    """The inverse of `pack`."""
    return nn.functional.pixel_shuffle(x_BNC.transpose(1, 2).unflatten(2, grid), 2)


def _padded(text: Tensor, length: int) -> Tensor:
    return nn.functional.pad(text, (0, 0, 0, length - len(text)))
