"""Run by torchrun: three steps of a tiny flow policy, an evaluation and a checkpoint. The first process writes what it
found to OUT/two.pt.

    two_processes.py RECIPE_PARTS_AS_JSON OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from premeditate.training.distributed import World, whole
from support.tiny_flow import panel_of, recipe, rows, trainer


def main() -> None:
    torch.set_num_threads(1)
    told, out, world = recipe(**json.loads(sys.argv[1])), Path(sys.argv[2]), World.join("cpu")
    assert world.size == 2
    with panel_of(told) as panel:
        run = trainer(told, panel, out, tasks=rows(4, wide=True), held_out=3, world=world)
        figures = []
        for _ in range(3):
            figures.append(run.train_step())
            run.step += 1
        held_out = run.evaluate()
        run.save()
        weights = torch.cat([whole(p.detach()).flatten() for p in run.named.values()])
        if world.first:
            torch.save({"weights": weights, "figures": figures, "held_out": held_out}, out / "two.pt")
    world.leave()


if __name__ == "__main__":
    main()
