"""Any diffusers pipeline that edits an image after an instruction, from a folder or from the hub.

What a pipeline is called with is decided by the parameters that its `__call__` has:

    ours                          its keyword              when
    prompt, image, generator      same                     always; one generator per request, on the CPU
    steps                         num_inference_steps      set
    guidance_scale,               same                     set
    image_guidance_scale
    true_cfg_scale                same                     set
    negative_prompt               same                     set, or guidance by a negative prompt is on: Qwen's true CFG
                                                           does nothing without one, so it gets " "
    working size                  height, width            it has them
    working size                  max_area,                Flux Kontext: without these it snaps to one of 17 sizes near
                                  _auto_resize=False       one megapixel
    max_sequence_length           same                     it has it and a second tokenizer: the most that reads
    cancellation                  callback_on_step_end     it has it; else a hook on its denoising network

and by its class name, for what parameters do not tell: `premeditate.editors.pipelines.TRAITS`. That module also loads
pipelines and holds those to the working size that would scale every input to a megapixel.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image

import premeditate
from premeditate.attribute import load_attribute
from premeditate.editors.base import EditRequest, EditResult
from premeditate.editors.fit import Fit
from premeditate.editors.pipelines import (
    LIBRARIES,
    TRAITS,
    Traits,
    as_they_are,
    check_kind,
    image_multiple,
    load_pipeline,
    prompt_tokens,
    stopping,
    text_limit,
)
from premeditate.errors import ModelError
from premeditate.local import (
    Job,
    Stopped,
    Worker,
    check_options,
    pick_device,
    pick_dtype,
    quiet,
    read_sidecar,
)

CALL_OPTIONS = ("guidance_scale", "image_guidance_scale", "true_cfg_scale", "negative_prompt", "max_sequence_length")
SIDECAR_OPTIONS = ("size", "steps", "max_batch", "domain", "vae_tiling", *CALL_OPTIONS)
LOAD_OPTIONS = ("revision", "lora", "lora_scale", "offload", "vae_tiling", "scheduler")
OPTIONS = (*SIDECAR_OPTIONS, "name", "device", "dtype", *(o for o in LOAD_OPTIONS if o not in SIDECAR_OPTIONS))


class DiffusersEditor:
    """Edits with a diffusers pipeline.

    `size`: the working area is about `size` x `size` pixels, at the source's aspect, None: 1024; further images are
    brought to about the same area, each at its own aspect. FLUX.2 works on one megapixel at most. `steps` and the
    `CALL_OPTIONS`: see the table in this module; None leaves the pipeline's own default. `max_batch`: requests per
    call, where the pipeline can batch. `domain`: a function, or its "module:name", called with each source; its
    ValueError becomes the request's `error`.

    The noise of a request comes from its seed alone, so its result does not depend on what else is in the batch beyond
    the rounding of matrix products. Output has the size of the request's first image and is aligned with it.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        name: str = "",
        size: int | None = None,
        steps: int | None = None,
        max_batch: int | None = None,
        domain: Callable[[Image.Image], object] | str | None = None,
        **call: Any,
    ) -> None:
        check_options(call, CALL_OPTIONS, "a diffusers editor")
        self.pipeline = pipeline
        self.domain = _find(domain) if isinstance(domain, str) else domain
        kind = type(pipeline).__name__
        self.name = name or kind
        for what, value in (("size", size), ("steps", steps), ("max_batch", max_batch)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ModelError(f"the editor option {what} is {value!r}", "give a whole number of at least 1")
        self.size, self.steps, self.max_batch = size or 1024, steps, max_batch or 1
        self._call = {key: value for key, value in call.items() if value is not None}
        self.recipe: dict[str, Any] = {"size": self.size, **({"steps": steps} if steps else {}), **self._call}
        """The options that shape a picture: part of what a trace is named by."""
        self._parameters = check_kind(type(pipeline))
        for key in self._call:
            if key not in self._parameters:
                raise ModelError(f"{kind} has no {key}", "leave that option out")
        self._traits = TRAITS.get(kind, Traits())
        self._multiple = self._traits.multiple or image_multiple(pipeline)
        self._worker = Worker(f"editor-{self.name}")
        pipeline.set_progress_bar_config(disable=True)
        for part in getattr(pipeline, "components", {}).values():
            # A pipeline built in memory has its dropout on: the same seed would give another picture each time.
            if hasattr(part, "eval"):
                part.eval()

    @classmethod
    def load(cls, spec: str, **options: Any) -> DiffusersEditor:
        """From a folder or a hub id `org/name`. Defaults come from the folder's `premeditate.json`. `options`: the
        constructor's, and

        - `device`: "cpu", "cuda", "cuda:1", "mps"; default: the best there is
        - `dtype`: "float32", "bfloat16", "float16"; default: float32 on a CPU, else bfloat16
        - `revision`: of the hub repository
        - `lora`: weights added to the model's: a file, a folder or `org/name`, also `org/name:file.safetensors` and
          `org/name@0.8`, which sets its scale; several with commas or as a list
        - `lora_scale`: the scale of those that name none, 0 for no effect; default 1.0
        - `offload`: "model" (or True; parts wait in main memory until they are needed), "sequential" (layers do, slow)
          or "group" (layers do, the next one is copied ahead on CUDA). "sequential" is not for a CPU, nor for LongCat
        - `vae_tiling`: True to decode large pictures in tiles, which saves memory
        - `scheduler`: settings of the pipeline's scheduler that are changed, which few-step LoRAs ask for

        Only safetensors are read and no code that comes with a model is run. Raises `ModelError`.
        """
        check_options(options, OPTIONS, "a diffusers editor")
        folder = Path(spec)
        sidecar = read_sidecar(folder, SIDECAR_OPTIONS) if folder.is_dir() else {}
        domain = sidecar.pop("domain", None)
        settings = {**sidecar, **{k: v for k, v in options.items() if v is not None}}
        if isinstance(domain, str) and "domain" not in settings:
            settings["domain"] = domain if _is_ours(folder, domain) else None
        device = pick_device(settings.pop("device", None))
        dtype = pick_dtype(settings.pop("dtype", None), device)
        loading = {key: settings.pop(key) for key in LOAD_OPTIONS if key in settings}
        pipeline = load_pipeline(spec, device=device, dtype=dtype, **loading)
        editor = cls(pipeline, **{"name": spec, **settings})
        shaping = ("lora", "lora_scale", "revision", "scheduler")
        editor.recipe |= {key: str(loading[key]) for key in shaping if loading.get(key) is not None}
        return editor

    def check(self, image: Image.Image) -> None:
        """Raises ValueError, with the mend, for a picture that this editor was not made for."""
        if self.domain is not None:
            self.domain(image)

    async def edit(self, requests: Sequence[EditRequest]) -> list[EditResult]:
        """One result per request, in order. When cancelled, the work stops at the next denoising step."""

        def work(job: Job) -> list[EditResult]:
            with quiet(*LIBRARIES):
                return self._edit(list(requests), job)

        return await self._worker.run(work)

    def _edit(self, requests: list[EditRequest], job: Job) -> list[EditResult]:
        results: dict[int, EditResult] = {}
        ready: dict[tuple[Fit, int], list[int]] = {}
        for i, request in enumerate(requests):
            try:
                self._check_request(request)
                fit = self._fit(request.images[0])
                ready.setdefault((fit, len(request.images)), []).append(i)
            except ValueError as error:
                results[i] = EditResult(None, 0.0, str(error))
        for (fit, _), indices in ready.items():
            for batch in self._batches(indices):
                done = self._batch([requests[i] for i in batch], fit, job)
                results.update(zip(batch, done, strict=True))
        return [results[i] for i in range(len(requests))]

    def _check_request(self, request: EditRequest) -> None:
        if not request.images:
            raise ValueError("the request has no image; give at least one")
        if len(request.images) > 1 and not self._traits.many:
            raise ValueError(f"{self.name} reads one image, the request has {len(request.images)}; leave out the rest")
        self.check(request.images[0])
        length = prompt_tokens(self.pipeline, request.prompt, self._call.get("max_sequence_length"))
        if length is not None and length[0] > length[1]:
            raise ValueError(f"the prompt has {length[0]} tokens, {self.name} reads {length[1]}; say it in fewer words")

    def _fit(self, image: Image.Image) -> Fit:
        return Fit.plan(image.size, self.size, self._multiple, self._traits.least, self._traits.most)

    def _batches(self, indices: list[int]) -> Iterator[list[int]]:
        size = self.max_batch if self._traits.batch else 1
        for start in range(0, len(indices), size):
            yield indices[start : start + size]

    def _batch(self, requests: list[EditRequest], fit: Fit, job: Job) -> list[EditResult]:
        """Runs one batch; one that fails is tried again one by one, so that only the guilty request gets an error."""
        start = time.perf_counter()
        try:
            job.check()
            images = self._run(requests, fit, job)
        except Stopped:
            raise
        except Exception as error:
            if len(requests) > 1:
                return [result for request in requests for result in self._batch([request], fit, job)]
            return [EditResult(None, time.perf_counter() - start, f"{type(error).__name__}: {error}")]
        share = (time.perf_counter() - start) / len(requests)
        return [EditResult(fit.undo(image), share) for image in images]

    def _run(self, requests: list[EditRequest], fit: Fit, job: Job) -> list[Image.Image]:
        import torch

        pictures = [
            [fit.apply(request.images[0]), *(self._fit(image).apply(image) for image in request.images[1:])]
            for request in requests
        ]
        arguments = self._arguments(requests, pictures, job)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self._traits.derives:
                stack.enter_context(as_they_are(self.pipeline, [p for group in pictures for p in group]))
            if "callback_on_step_end" not in self._parameters:
                stack.enter_context(stopping(self.pipeline, job))
            try:
                output = self.pipeline(**arguments).images
            except Exception:
                # The pipeline had no chance to put its offloaded parts away.
                self.pipeline.maybe_free_model_hooks()
                raise
        if len(output) != len(requests):
            raise RuntimeError(f"{self.name} gave {len(output)} images for {len(requests)} requests")
        return list(output)

    def _arguments(self, requests: list[EditRequest], pictures: list[list[Image.Image]], job: Job) -> dict[str, Any]:
        """The keywords of one pipeline call: the table in this module's docstring. `pictures`: of each request, at
        their working sizes."""
        import torch

        generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        arguments: dict[str, Any] = dict(self._call)
        if self._traits.batch:
            arguments |= {"prompt": [r.prompt for r in requests], "image": [p[0] for p in pictures]}
            arguments["generator"] = generators
        else:
            arguments |= {"prompt": requests[0].prompt, "generator": generators[0]}
            arguments["image"] = pictures[0] if self._traits.many else pictures[0][0]
        width, height = pictures[0][0].size
        offered = {"num_inference_steps": self.steps, "width": width, "height": height, "max_area": width * height,
                   "_auto_resize": False, "output_type": "pil"}  # fmt: skip
        arguments |= {k: v for k, v in offered.items() if k in self._parameters and v is not None}
        if (limit := text_limit(self.pipeline, self._call.get("max_sequence_length"))) is not None:
            arguments["max_sequence_length"] = limit
        if negative := self._negative_prompt():
            arguments["negative_prompt"] = [negative] * len(requests) if self._traits.batch else negative
        if "callback_on_step_end" in self._parameters:
            arguments["callback_on_step_end"] = lambda pipeline, step, time, tensors: _between(job, tensors)
        return arguments

    def _negative_prompt(self) -> str | None:
        if "negative_prompt" in self._call:
            return str(self._call["negative_prompt"])
        if "true_cfg_scale" not in self._parameters or "negative_prompt" not in self._parameters:
            return None
        scale = self._call.get("true_cfg_scale", self._parameters["true_cfg_scale"].default)
        return " " if scale is not None and scale > 1 else None


def _between(job: Job, tensors: dict[str, Any]) -> dict[str, Any]:
    """Runs after every denoising step."""
    job.check()
    return tensors


def _is_ours(folder: Path, name: str) -> bool:
    """Whether a sidecar may name a check. Only in a folder inside this package: anywhere else it would let a downloaded
    file choose code to run, so it is left out and said."""
    if folder.resolve().is_relative_to(Path(premeditate.__file__).resolve().parent):
        return True
    logging.getLogger(__name__).warning("%s names the check %s: left out, only the package's own may", folder, name)
    return False


def _find(name: str) -> Callable[[Image.Image], object]:
    """The function "module:name"."""
    try:
        check: Callable[[Image.Image], object] = load_attribute(name)
    except (ImportError, AttributeError, ValueError):
        raise ModelError(f"there is no check {name!r}", 'give a function, or its "module:name"') from None
    return check
