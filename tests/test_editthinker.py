"""EditThinker's services, against a server on loopback that takes what theirs take."""

from __future__ import annotations

import numpy as np
import pytest

from premeditate.editors.editthinker import EditThinkerEditor
from premeditate.remote import EndpointError, Health
from support.http_editors import SIZES, ask, blot, blue_to_red, fails, health, red_box, run
from support.images_server import EditThinkerServer, Flux, ImagesServer, OmniGen2, Qwen
from support.pictures import difference, smooth


def test_editthinker_gets_the_fields_that_it_names() -> None:
    with EditThinkerServer(Flux) as server:
        editor = EditThinkerEditor.load(server.origin, steps=8, guidance_scale=1.0, size=64)
        assert run(editor, ask(key="k"))[0].error is None
        assert fails(EditThinkerEditor(server.origin, negative_prompt="x")).problem.endswith("has no negative_prompt")
        error = fails(EditThinkerEditor(server.origin, steps=200))
        assert error.kind == "denied" and "from 1 to 100, not 200" in error.problem
    del server.bodies[0]["image"]
    assert server.bodies == [
        {"prompt": "paint it red", "seed": 7, "enhance_prompt": False, "num_inference_steps": 8, "guidance_scale": 1.0}
    ]
    assert editor.name == "EditThinker service" and server.host not in editor.name

    with EditThinkerServer(OmniGen2) as server:
        editor = EditThinkerEditor(server.origin, guidance_scale=4, image_guidance_scale=1.5, negative_prompt="dim")
        assert run(editor, ask())[0].error is None
    body = server.bodies[0]
    assert (body["text_guidance_scale"], body["image_guidance_scale"], body["negative_prompt"]) == (4, 1.5, "dim")
    assert body["enhance_prompt"] is False and "guidance_scale" not in body


def test_editthinker_answers_come_back_in_place() -> None:
    with EditThinkerServer(Qwen) as server:
        editor = EditThinkerEditor(server.origin, size=160)
        sources = [smooth(*size) for size in SIZES]
        for source, result in zip(sources, run(editor, *map(ask, sources)), strict=True):
            assert difference(result.image, source) <= 20, source.size
        # Kontext's way: stretched to the nearest of its sizes.
        server.paint, server.size, box = blue_to_red, (832, 1248), (30, 70, 80, 110)
        (result,) = run(EditThinkerEditor(server.origin), ask(blot((200, 320), box)))
        assert np.abs(np.subtract(red_box(result.image), box)).max() <= 1
        server.size = (1248, 832)
        assert fails(editor, ask(blot((200, 320), box))).kind == "garbage"


def test_editthinker_failures_and_health() -> None:
    with EditThinkerServer(Qwen) as server:
        editor = EditThinkerEditor(server.origin, size=64)
        kinds = {"error": "failed", "no success": "failed", "no picture": "garbage", "503": "busy"}
        for fault, kind in kinds.items():
            server.faults.append(fault)
            assert fails(editor).kind == kind, fault
        assert fails(editor, ask(smooth(9, 9), smooth(9, 9))).kind == "rejected"
        assert health(editor) == Health(2, 1)
        server.status["system_ready"] = False
        with pytest.raises(EndpointError, match="not ready") as caught:
            health(editor)
        assert caught.value.kind == "busy"
    with ImagesServer() as other:
        error = fails(EditThinkerEditor(other.origin))
        assert error.kind == "denied" and "no POST /edit" in error.problem
