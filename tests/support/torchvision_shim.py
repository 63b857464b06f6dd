"""Makes a torchvision whose compiled half does not fit this torch importable: for tests, and only in a process of
their own.

Beside a CPU-only torch, the torchvision of the package index cannot load its operators, and every stock processor of
the Qwen vision-language models needs the Python half. Get one with

    pip install --no-deps --target FOLDER torchvision==0.28.0     (the one that belongs to torch 2.13)

and set PREMEDITATE_TORCHVISION=FOLDER. `python -m support.torchvision_shim serve ...` is then `transformers serve ...`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

FOLDER = "PREMEDITATE_TORCHVISION"
MISSING = f"no torchvision: pip install --no-deps --target FOLDER torchvision==0.28.0, and set {FOLDER}=FOLDER"
OPERATORS = ("nms", "roi_align", "_roi_align_backward", "ps_roi_align", "_ps_roi_align_backward", "roi_pool",
             "_roi_pool_backward", "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d", "_deform_conv2d_backward",
             "qnms", "qroi_align")  # fmt: skip
_kept: list[Any] = []


def importable() -> bool:
    """Whether this very process would find one."""
    return importlib.util.find_spec("torchvision") is not None


def available() -> bool:
    """Whether a process started with `environment()` finds one."""
    folder = os.environ.get(FOLDER)
    return importable() or (folder is not None and (Path(folder) / "torchvision").is_dir())


def environment(**extra: str) -> dict[str, str]:
    """The environment for a process that calls `install`: one thread, no network, this package on its path."""
    paths = [str(Path(__file__).resolve().parent.parent), os.environ.get(FOLDER, ""), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1",
             "HF_HUB_OFFLINE": "1"}  # fmt: skip
    return found | extra


def install() -> None:
    """Call it before anything imports torchvision or transformers. Does nothing where the operators load."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    assert spec is not None and spec.submodule_search_locations, MISSING
    try:
        for library in Path(spec.submodule_search_locations[0]).glob("_C*.so"):
            torch.ops.load_library(str(library))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        _kept.append(library)  # its operators live as long as it does
        for name in OPERATORS:  # nothing calls them; torchvision only wants to see them there
            library.define(f"{name}(Tensor x) -> Tensor")
        _read_with_pillow()


def _read_with_pillow() -> None:
    """The image decoder is compiled too."""
    import io

    import numpy as np
    import torch
    import torchvision.io
    from PIL import Image

    def decode_image(data: Any, mode: Any = None, apply_exif_orientation: bool = False) -> Any:
        image = Image.open(data if isinstance(data, str) else io.BytesIO(data.numpy().tobytes()))
        return torch.from_numpy(np.array(image.convert("RGB")).transpose(2, 0, 1).copy())

    torchvision.io.decode_image = torchvision.io.image.decode_image = decode_image


if __name__ == "__main__":
    install()
    from transformers.cli.transformers import main

    sys.argv[0] = "transformers"
    main()
