"""Where figures and pictures go beside our own log: TensorBoard, Weights & Biases, trackio. Each is imported only when
it is asked for."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from premeditate.config import dump_config
from premeditate.errors import PremeditateError
from premeditate.files import write_atomic
from premeditate.training.recipe import Recorded

if TYPE_CHECKING:
    from PIL import Image

_NEEDS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
_IDENTITY = "wandb.json"


class Tracker(Protocol):
    """Any call may raise: the journal then does without."""

    def log(self, step: int, figures: Mapping[str, float]) -> None: ...
    def picture(self, step: int, name: str, image: Image.Image) -> None: ...
    def close(self) -> None: ...


def check(wanted: Iterable[str]) -> None:
    """Raises `PremeditateError` for a tracker that is not installed. Imports none."""
    for name in wanted:
        if importlib.util.find_spec(_NEEDS[name]) is None:
            raise PremeditateError(
                f"logging.to asks for {name}, which is not installed", f"pip install 'premeditate[{name}]'"
            )


def open_tracker(name: str, out: Path, recipe: Recorded, step: int) -> Tracker:
    """The tracker `name` for the run in `out` that goes on from `step`. Raises `PremeditateError` if it cannot start:
    at the beginning nothing is lost yet."""
    check([name])
    kinds: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio}
    try:
        tracker: Tracker = kinds[name](out, recipe, step)
    except Exception as error:
        raise PremeditateError(
            f"{name} cannot start: {' '.join(str(error).split())[:300] or type(error).__name__}",
            f"mend it, or leave {name} out of logging.to",
        ) from error
    return tracker


class TensorBoard:
    """Event files in OUT/tensorboard. What was written after the step that is resumed from is hidden."""

    def __init__(self, out: Path, recipe: Recorded, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)
        if step == 0:
            self.writer.add_text("recipe", "\n".join(f"    {line}" for line in dump_config(recipe).splitlines()), 0)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        import numpy as np

        self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run whose id is kept in OUT/wandb.json, so that a resumed one goes on in the same place."""

    def __init__(self, out: Path, recipe: Recorded, step: int) -> None:
        import wandb

        self.wandb = wandb
        path = out / _IDENTITY
        known = json.loads(path.read_bytes()) if step and path.exists() else {}
        self.run = wandb.init(
            project=recipe.logging.project, name=recipe.name or None, dir=str(out), id=known.get("id"),
            resume="allow" if known else None, config=recipe.model_dump(mode="json"),
        )  # fmt: skip
        write_atomic(path, json.dumps({"id": self.run.id}).encode())

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self.run.log({name: self.wandb.Image(image)}, step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A run of trackio, whose tables lie on this machine. It is found again by its name."""

    def __init__(self, out: Path, recipe: Recorded, step: int) -> None:
        import trackio

        self.trackio = trackio
        trackio.init(
            project=recipe.logging.project, name=recipe.name or out.name, config=recipe.model_dump(mode="json"),
            resume="allow" if step else "never",
        )  # fmt: skip

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.trackio.log(dict(figures), step=step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self.trackio.log({name: self.trackio.Image(image)}, step=step)

    def close(self) -> None:
        self.trackio.finish()
