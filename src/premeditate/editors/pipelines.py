"""Diffusers pipelines: what each kind needs to be known about, how one is loaded, and how its sizes are held.

Verified in the source of diffusers 0.42.1 and by the tests, on pipelines with random weights:

    pipeline              sizes                                     images           batch     stops at
    QwenImageEdit         ~1 MP of the input's aspect, x32          1                lists     a step (callback)
    QwenImageEditPlus     the same for each input; 384^2 for the    several          1 prompt  a step (callback)
                          text encoder
    LongCatImageEdit      ~1 MP, x16 upwards; takes no height or    1                1 prompt  a step (our hook)
                          width and has no callback
    FluxKontext           one of 17 sizes unless told not to        1                lists     a step (callback)
    Flux2Klein            the input's, but above 1 MP it is shrunk  several, >= 64   1 prompt  a step (callback)
                          and *cropped* to x16: that shifts it      px, aspect <= 8
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from premeditate.editors.fit import Size
from premeditate.editors.lora import add_loras, find_loras, network
from premeditate.errors import ModelError
from premeditate.local import Job, load_failure, quiet
from premeditate.qwen_processor import FAMILIES, load_processor

LIBRARIES = ("diffusers", "transformers")
OFFLOADS = ("model", "sequential", "group")
MEGAPIXEL = 1 << 20


@dataclass(frozen=True)
class Traits:
    """What a pipeline's parameters do not tell.

    `batch`: reads a list of images as one per prompt. `many`: reads a list of images as references of one prompt.
    `multiple`: working sizes are multiples of this, in pixels; 0: ask its image processor. `least`: pixels that each
    side of an image needs. `most`: pixels that an image may have, above which the pipeline would shrink it by itself.
    `derives`: takes its sizes from `calculate_dimensions` in its module, see `as_they_are`.
    """

    batch: bool = False
    many: bool = False
    multiple: int = 0
    least: int = 1
    most: int | None = None
    derives: bool = False


TRAITS: dict[str, Traits] = {
    "FluxKontextPipeline": Traits(batch=True),
    "StableDiffusionInstructPix2PixPipeline": Traits(batch=True),
    "QwenImageEditPipeline": Traits(batch=True, multiple=32, derives=True),
    "QwenImageEditPlusPipeline": Traits(many=True, multiple=32, derives=True),
    "LongCatImageEditPipeline": Traits(multiple=16, derives=True),
    "Flux2Pipeline": Traits(many=True, least=64, most=MEGAPIXEL),
    "Flux2KleinPipeline": Traits(many=True, least=64, most=MEGAPIXEL),
}
"""Pipelines that are not named here get one image and one prompt at a time."""


def check_kind(kind: type) -> Mapping[str, inspect.Parameter]:
    """The parameters of a pipeline class's call. Raises `ModelError` if it does not edit an image after a prompt."""
    parameters = inspect.signature(kind.__call__).parameters
    for key in ("prompt", "image"):
        if key not in parameters:
            raise ModelError(f"{kind.__name__} takes no {key}", "give a pipeline that edits an image after a prompt")
    return parameters


# -- loading ------------------------------------------------------------------------------------------------------


def load_pipeline(
    spec: str,
    *,
    device: str,
    dtype: Any,
    revision: str | None = None,
    lora: str | Sequence[str] | None = None,
    lora_scale: float = 1.0,
    offload: str | bool = False,
    vae_tiling: bool = False,
    scheduler: Mapping[str, Any] | None = None,
) -> Any:
    """The pipeline in a folder or hub repository, on `device` in `dtype`. Raises `ModelError`.

    For the options see `DiffusersEditor.load`. Only safetensors are read, no code that comes with a model is run, and
    torchvision is not needed: Qwen's processors are built without their video part.
    """
    way = "model" if offload is True else offload or ""
    if way and way not in OFFLOADS:
        raise ModelError(f"the editor option offload is {offload!r}", f"give one of {', '.join(OFFLOADS)}")
    if way in ("model", "sequential") and importlib.util.find_spec("accelerate") is None:
        raise ModelError(f"offload={way} needs the package accelerate", "pip install accelerate, or give offload=group")
    if not isinstance(vae_tiling, bool):
        raise ModelError(f"the editor option vae_tiling is {vae_tiling!r}", "give true or false")
    adapters = find_loras(lora, lora_scale)
    local = Path(spec).is_dir()
    hub = {"local_files_only": True} if local else {"revision": revision}
    with quiet(*LIBRARIES, loading=True):
        import diffusers

        modern = tuple(int(part) for part in diffusers.__version__.split(".")[:2]) >= (0, 42)
        kind = {"dtype" if modern else "torch_dtype": dtype}
        try:
            index = diffusers.DiffusionPipeline.load_config(spec, **hub)
            _check_libraries(index)
            if (known := getattr(diffusers, str(index.get("_class_name")), None)) is not None:
                check_kind(known)  # before gigabytes are read
            pipeline = diffusers.DiffusionPipeline.from_pretrained(
                spec, use_safetensors=True, trust_remote_code=False, **kind, **hub, **_processors(spec, index, hub)
            )
            if scheduler:
                pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **scheduler)
            add_loras(pipeline, adapters)
            if vae_tiling:
                _tile(pipeline)
            _place(pipeline, device, way)
        except ModelError:
            raise
        except Exception as error:
            raise load_failure(spec, error) from error
    return pipeline


def _processors(spec: str, index: Mapping[str, Any], hub: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a pipeline that are processors of the Qwen family, as the image-only kind."""
    found = {}
    for part, value in index.items():
        if isinstance(value, (list, tuple)) and value[0] == "transformers" and value[1] in FAMILIES.values():
            if Path(spec).is_dir():
                found[part] = load_processor(str(Path(spec) / part), value[1], **hub)
            else:
                found[part] = load_processor(spec, value[1], subfolder=part, **hub)
    return found


def _check_libraries(config: Mapping[str, Any]) -> None:
    """A pipeline's index names the Python library of every part: only the two libraries we know are imported for it."""
    from diffusers import pipelines

    for part, value in config.items():
        if part.startswith("_") or not isinstance(value, (list, tuple)) or value[0] is None:
            continue
        library = str(value[0])
        if library not in LIBRARIES and not hasattr(pipelines, library):
            raise ModelError(
                f"the pipeline's part {part} comes from {library!r}", "only diffusers and transformers are loaded"
            )


def _tile(pipeline: Any) -> None:
    vae: Any = getattr(pipeline, "vae", None)
    if not hasattr(vae, "enable_tiling"):
        raise ModelError(f"{type(pipeline).__name__} has no autoencoder that can be tiled", "leave vae_tiling out")
    vae.enable_tiling()


def _place(pipeline: Any, device: str, way: str) -> None:
    import torch

    if way == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif way == "sequential":
        # accelerate cannot put weights aside on a CPU, and LongCat's pipeline asks its first weight where to compute.
        if device == "cpu" or type(pipeline).__name__.startswith("LongCat"):
            raise ModelError(f"offload=sequential does not work for {type(pipeline).__name__} on {device}",
                             "give offload=model or offload=group")  # fmt: skip
        pipeline.enable_sequential_cpu_offload(device=device)
    elif way == "group":
        # Streams copy the next layer while this one computes; only CUDA has them.
        pipeline.enable_group_offload(
            onload_device=torch.device(device), offload_type="leaf_level", use_stream=device.startswith("cuda")
        )
    else:
        pipeline.to(device)


# -- while it runs ------------------------------------------------------------------------------------------------


class _Wanted(threading.local):
    sizes: Mapping[float, Size] = {}


_wanted = _Wanted()
_patching = threading.Lock()


@contextmanager
def as_they_are(pipeline: Any, pictures: Sequence[Image.Image]) -> Iterator[None]:
    """Inside, on this thread, a pipeline that `derives` its sizes takes these pictures at the sizes they have.

    Qwen's and LongCat's pipelines scale each input to one megapixel with the function `calculate_dimensions` of their
    module, whatever size is asked for. That function is wrapped once per process: for the aspect of one of `pictures`
    it answers that picture's size, elsewhere and on other threads what it always did.
    """
    module = sys.modules[type(pipeline).__module__]
    with _patching:
        stock = getattr(module, "calculate_dimensions", None)
        if stock is not None and not hasattr(stock, "__wrapped__"):
            module.calculate_dimensions = _answering(stock)  # type: ignore[attr-defined]
    _wanted.sizes = {picture.width / picture.height: picture.size for picture in pictures}
    try:
        yield
    finally:
        _wanted.sizes = {}


def _answering(stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def calculate_dimensions(target_area: int, ratio: float) -> Any:
        answer = stock(target_area, ratio)
        # Smaller areas are for the text encoder, which stays as it was trained.
        if target_area == MEGAPIXEL and ratio in _wanted.sizes:
            return (*_wanted.sizes[ratio], *answer[2:])
        return answer

    return calculate_dimensions


@contextmanager
def stopping(pipeline: Any, job: Job) -> Iterator[None]:
    """Inside, every call of the denoising network first asks whether somebody still waits for the job: for pipelines
    without a callback between steps. Raises `Stopped` from the pipeline's call."""
    denoiser = network(pipeline)
    if not hasattr(denoiser, "register_forward_pre_hook"):
        yield
        return
    handle = denoiser.register_forward_pre_hook(lambda *_: job.check())
    try:
        yield
    finally:
        handle.remove()


def prompt_tokens(pipeline: Any, prompt: str, wanted: int | None) -> tuple[int, int] | None:
    """(tokens of the prompt, tokens that the pipeline reads), where it would cut off or break on a longer prompt; None
    where it reads any. `wanted`: the option `max_sequence_length`."""
    kind = type(pipeline).__name__
    if kind == "LongCatImageEditPipeline":
        split = sys.modules[type(pipeline).__module__].split_quotation
        pieces = [piece for text, quoted in split(prompt) for piece in (text if quoted else [text])]
        count = sum(len(pipeline.tokenizer(piece, add_special_tokens=False)["input_ids"]) for piece in pieces)
        return count, int(pipeline.tokenizer_max_length)
    if kind == "Flux2KleinPipeline":
        message = [{"role": "user", "content": prompt}]
        text = pipeline.tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return len(pipeline.tokenizer(text)["input_ids"]), wanted or _default_length(pipeline)
    if (limit := text_limit(pipeline, wanted)) is not None:
        return len(pipeline.tokenizer_2(prompt)["input_ids"]), limit
    return None


def text_limit(pipeline: Any, wanted: int | None) -> int | None:
    """Tokens that the longer-reading of two text encoders takes; None where there is one encoder."""
    second = getattr(pipeline, "tokenizer_2", None)
    if second is None or not (length := wanted or _default_length(pipeline)):
        return None
    return int(min(length, second.model_max_length))


def _default_length(pipeline: Any) -> int:
    parameter = inspect.signature(pipeline.__call__).parameters.get("max_sequence_length")
    return 0 if parameter is None else int(parameter.default)


def image_multiple(pipeline: Any) -> int:
    """Pixels that a working size must be a multiple of: the autoencoder's factor times the patch size."""
    config = getattr(getattr(pipeline, "image_processor", None), "config", None)
    return int(getattr(config, "vae_scale_factor", None) or 16)
