"""Editors behind HTTP, against servers on loopback that hold them to the published contracts."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from premeditate.editors.addresses import open_editors
from premeditate.editors.base import Editor, EditRequest
from premeditate.editors.editthinker import EditThinkerEditor
from premeditate.editors.openai_images import EDGE, LEAST, MOST, OpenAIImagesEditor, openai_size
from premeditate.errors import ModelError
from premeditate.remote import Health
from support.http_editors import SIZES, ask, blot, blue_to_red, fails, health, red_box, run
from support.images_server import ImagesServer, png
from support.pictures import difference, smooth


@pytest.fixture(scope="module")
def running() -> Iterator[ImagesServer]:
    with ImagesServer() as server:
        yield server


@pytest.fixture
def server(running: ImagesServer) -> ImagesServer:
    running.reset()
    return running


@pytest.fixture
def editor(server: ImagesServer) -> OpenAIImagesEditor:
    return OpenAIImagesEditor(server.url, size=64)


# -- what goes out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["vllm-omni", "sglang"])
def test_diffusion_servers_get_every_setting(server: ImagesServer, dialect: str) -> None:
    server.reset(dialect)
    settings = {"steps": 8, "guidance_scale": 1.5, "true_cfg_scale": 4.0, "size": 64}
    editor = OpenAIImagesEditor.load(server.origin, **settings)
    assert run(editor, ask())[0].error is None
    named = OpenAIImagesEditor.load(server.url, negative_prompt="blur", model="tiny-edit", **settings)
    assert run(named, ask())[0].error is None
    assert editor.dialect == named.dialect == dialect and editor.name == "tiny-edit"
    assert server.forms[0] == {
        "prompt": "paint it red", "model": "tiny-edit", "size": "64x64", "seed": "7", "output_format": "png",
        "num_inference_steps": "8", "guidance_scale": "1.5", "true_cfg_scale": "4.0", "negative_prompt": " ",
        "files": ["image"],
    }  # fmt: skip
    assert server.forms[1]["negative_prompt"] == "blur"


def test_openai_gets_nothing_beyond_its_api(server: ImagesServer) -> None:
    server.reset("openai")
    editor = OpenAIImagesEditor(server.url)
    results = run(editor, *(ask(smooth(*size)) for size in [(64, 64), (300, 20)]))
    assert [r.error for r in results] == [None, None]
    assert {frozenset(form) for form in server.forms} == {frozenset({"prompt", "model", "size", "files"})}
    assert editor.describe() == {"endpoint": editor.host, "dialect": "openai", "model": "tiny-edit", "ignores": "seed"}


def test_several_sources_go_as_the_openai_client_sends_them(server: ImagesServer, editor: OpenAIImagesEditor) -> None:
    first, second = smooth(64, 32), blot((32, 32), (0, 0, 9, 9))
    assert run(editor, ask(first, second))[0].error is None
    assert server.forms[0]["files"] == ["image[]", "image[]"]
    assert [picture.size for picture in server.pictures[0]] == [(96, 32)] * 2
    assert "no image" in str(run(editor, EditRequest((), "x"))[0].error)


def test_openais_own_client_can_use_the_server(server: ImagesServer) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=server.url, api_key="none", max_retries=0)
    source = smooth(64, 64)
    answer = client.images.edit(
        image=("a.png", png(source), "image/png"), prompt="paint", size="1024x1024", extra_body={"seed": 1}
    )
    assert answer.data is not None and answer.data[0].b64_json is not None
    assert difference(Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))).convert("RGB"), source) == 0


@pytest.mark.parametrize(("owner", "models", "dialect"), [
    ("vllm", ["a"], "vllm-omni"), ("sglang", ["a"], "sglang"), ("premeditate", ["a"], "vllm-omni"),
    ("system", ["a"], "openai"), ("vllm", [], "openai"),
])  # fmt: skip
def test_the_dialect_is_found(server: ImagesServer, owner: str, models: list[str], dialect: str) -> None:
    server.owner, server.models = owner, models
    editor = OpenAIImagesEditor(server.url)
    asyncio.run(editor.prepare())
    assert editor.dialect == dialect and editor.host == server.host
    assert editor.name == (models[0] if models else "openai images API")


def test_openai_itself_is_known_by_its_host() -> None:
    editor = OpenAIImagesEditor("https://api.openai.com/v1", model="gpt-image-2")
    asyncio.run(editor.prepare())  # asks nobody: there is no network in tests
    assert (editor.dialect, editor.name) == ("openai", "gpt-image-2")
    with pytest.raises(ModelError, match="has no steps"):
        OpenAIImagesEditor("https://api.openai.com/v1", steps=8)


def test_a_setting_that_the_server_cannot_honour_is_an_error(server: ImagesServer) -> None:
    server.owner = "somebody"
    error = fails(OpenAIImagesEditor(server.url, steps=8))
    assert error.kind == "denied" and "no steps" in error.problem and "vllm-omni" in error.mend
    assert not server.forms


def test_a_refusal_is_passed_on(server: ImagesServer) -> None:
    error = fails(OpenAIImagesEditor(server.url, dialect="vllm-omni", model="other", size=64))
    assert error.kind == "rejected" and "server is running 'tiny-edit'" in error.problem
    server.dialect = "openai"  # strict about fields that it does not know
    error = fails(OpenAIImagesEditor(server.url, dialect="vllm-omni", model="tiny-edit"))
    assert error.kind == "rejected" and "Unknown field" in error.problem


def test_the_key_goes_out(server: ImagesServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "secret"
    error = fails(OpenAIImagesEditor(server.url, size=64))
    assert error.kind == "denied" and "API key" in error.mend and "secret" not in str(error)
    assert run(OpenAIImagesEditor(server.url, size=64, key="secret"), ask())[0].error is None
    monkeypatch.setenv("PREMEDITATE_EDITOR_KEY", "secret")
    assert run(OpenAIImagesEditor(server.url, size=64), ask())[0].error is None


def test_one_idempotency_key_makes_one_edit(server: ImagesServer, editor: OpenAIImagesEditor) -> None:
    results = run(editor, ask(key="run-1"))
    results += run(editor, ask(key="run-1")) + run(editor, ask(key="run-2")) + run(editor, ask())
    assert [r.error for r in results] == [None] * 4
    assert server.keys == ["run-1", "run-1", "run-2", ""] and server.made == 3


# -- sizes and alignment -------------------------------------------------------------------------------------------


def test_what_the_server_returns_comes_back_in_place(server: ImagesServer) -> None:
    editor = OpenAIImagesEditor(server.url, size=160)
    sources = [smooth(*size) for size in SIZES]
    for source, result in zip(sources, run(editor, *map(ask, sources)), strict=True):
        assert difference(result.image, source) <= 16, source.size  # one pixel in 17 would be 15 levels
    assert all(int(side) % 32 == 0 for form in server.forms for side in form["size"].split("x"))
    assert all(
        f"{p.width}x{p.height}" == form["size"] for form, (p,) in zip(server.forms, server.pictures, strict=True)
    )


@pytest.mark.parametrize(("size", "box"), [((300, 200), (40, 30, 90, 70)), ((200, 300), (150, 250, 200, 300)),
                                           ((640, 64), (600, 10, 630, 40)), ((96, 96), (0, 0, 10, 20))])  # fmt: skip
def test_what_the_server_marks_is_marked_in_the_source(
    server: ImagesServer, size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    for dialect, side in (("vllm-omni", 256), ("openai", 830)):
        server.reset(dialect)
        server.paint = blue_to_red
        (result,) = run(OpenAIImagesEditor(server.url, size=side), ask(blot(size, box)))
        assert result.image is not None and result.image.size == size, result.error
        assert np.abs(np.subtract(red_box(result.image), box)).max() <= 1, dialect


def test_another_size_is_scaled_and_another_shape_refused(server: ImagesServer) -> None:
    server.paint = blue_to_red
    editor = OpenAIImagesEditor(server.url, size=256)
    server.faults.extend(["half size", "square"])
    box = (100, 30, 150, 70)
    (scaled,) = run(editor, ask(blot((300, 150), box)))
    assert np.abs(np.subtract(red_box(scaled.image), box)).max() <= 2
    error = fails(editor, ask(blot((300, 150), box)))
    assert error.kind == "garbage" and "64 x 64 pixels where 352 x 192" in error.problem and "size" in error.mend


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 9000), st.sampled_from(["gpt-image-2", ""]))
def test_sizes_that_openai_accepts(width: int, height: int, side: int, model: str) -> None:
    w, h = openai_size((width, height), side, model)
    assert w % 16 == h % 16 == 0 and max(w, h) <= EDGE and max(w, h) <= 3 * min(w, h)
    assert LEAST <= w * h <= MOST
    if 850 <= side <= 2000 and 1 / 2 < width / height < 2:
        assert 0.9 < w * h / side**2 < 1.1 and abs(w / h * height / width - 1) < 0.05


def test_openais_older_models_have_three_sizes() -> None:
    sizes = [openai_size(size, 1024, "gpt-image-1.5") for size in [(100, 90), (400, 90), (90, 200)]]
    assert sizes == [(1024, 1024), (1536, 1024), (1024, 1536)]


# -- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "kind", "said"), [
    ("429", "busy", "later"), ("500", "failed", "CUDA out of memory"), ("400", "rejected", "safety system"),
    ("html", "garbage", "a web page"), ("truncated", "garbage", "not JSON"), ("error in 200", "failed", "crashed"),
    ("reset", "failed", "broke off"), ("no data", "garbage", "no picture"), ("no base64", "garbage", "no picture"),
    ("no image", "garbage", "not an image"), ("half a picture", "garbage", "truncated"),
    ("foreign url", "garbage", "another host"),
])  # fmt: skip
def test_faults_have_names(server: ImagesServer, editor: OpenAIImagesEditor, fault: str, kind: str, said: str) -> None:
    server.faults.extend([fault, fault])
    error = fails(editor)
    assert (error.kind, error.retry_after) == (kind, 7 if fault == "429" else None)
    assert said in error.problem and error.mend and server.host in error.problem
    bad, good = run(editor, ask(), ask())
    assert sorted([bad.error is None, good.error is None]) == [False, True]  # the other of its batch went on


def test_a_picture_at_the_same_address_is_fetched(server: ImagesServer, editor: OpenAIImagesEditor) -> None:
    server.faults.extend(["url", "relative url"])
    source = smooth(64, 64)
    assert [difference(run(editor, ask(source))[0].image, source) for _ in range(2)] == [0, 0]
    assert server.fetched == 2


def test_a_picture_that_is_not_where_the_answer_says_does_not_rule_the_endpoint_out(
    server: ImagesServer, editor: OpenAIImagesEditor
) -> None:
    server.faults.append("lost url")
    error = fails(editor)
    assert error.kind == "garbage" and "404" in error.problem and server.host in error.problem and error.mend


def test_a_hanging_server_times_out_and_is_told(server: ImagesServer, editor: OpenAIImagesEditor) -> None:
    server.faults.append("hang")
    error = fails(editor, timeout=0.3)
    assert error.kind == "timeout"
    until = time.monotonic() + 3
    while not server.left and time.monotonic() < until:
        time.sleep(0.01)
    assert server.left == 1


def test_cancelling_reaches_the_server(server: ImagesServer, editor: OpenAIImagesEditor) -> None:
    server.faults.extend(["hang", "hang"])

    async def go() -> None:
        task = asyncio.create_task(editor.edit([ask(), ask()]))
        while len(server.keys) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(3):
            while server.left < 2:
                await asyncio.sleep(0.01)
        assert (await editor.send(ask())).error is None
        await editor.aclose()

    asyncio.run(go())


def test_a_batch_comes_back_in_order(server: ImagesServer, editor: OpenAIImagesEditor) -> None:
    sources = [Image.new("RGB", (64, 64), (i, 0, 0)) for i in range(12)]
    results = run(editor, *(ask(source, seed=i, key=f"k{i}") for i, source in enumerate(sources)))
    assert [difference(r.image, s) for r, s in zip(results, sources, strict=True)] == [0] * 12
    assert sorted((form["seed"], key[1:]) for form, key in zip(server.forms, server.keys, strict=True)) == sorted(
        (str(i), str(i)) for i in range(12)
    )
    assert all(r.seconds > 0 for r in results) and isinstance(editor, Editor)


def test_a_server_that_was_down_is_asked_again() -> None:
    with ImagesServer("sglang") as server:
        url = server.url
    editor = OpenAIImagesEditor(url, size=64)
    assert fails(editor).kind == "unreachable"
    with ImagesServer("sglang") as server:
        editor._http.url = server.url  # the port is another one
        assert run(editor, ask())[0].error is None


# -- health --------------------------------------------------------------------------------------------------------


def test_health(server: ImagesServer, editor: OpenAIImagesEditor) -> None:
    assert health(editor) == Health()  # an empty answer: up
    server.about = {"status": "ok"}
    assert health(editor) == Health()
    server.about = "missing"
    assert health(editor) == Health()
    server.about = {"capacity": 4, "in_flight": 2, "model": "tiny", "idempotency": True}
    assert health(editor) == Health(4, 2, "tiny", True)
    server.about = {"capacity": "many", "in_flight": -1, "model": 7, "idempotency": "yes"}
    assert health(editor) == Health()
    assert health(OpenAIImagesEditor(server.url, capacity=3)).capacity == 3


# -- options and addresses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    ({"stepz": 3}, "did you mean steps"), ({"steps": 0}, "at least 1"), ({"steps": True}, "at least 1"),
    ({"size": 1.5}, "at least 1"), ({"guidance_scale": "high"}, "not negative"), ({"timeout": 0}, "more than 0"),
    ({"true_cfg_scale": float("nan")}, "not negative"), ({"dialect": "vllm"}, "did you mean vllm-omni"),
])  # fmt: skip
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        OpenAIImagesEditor.load("http://localhost:1/v1", **options)
    if "dialect" not in options and "true_cfg_scale" not in options:
        with pytest.raises(ModelError, match=message):
            EditThinkerEditor.load("http://localhost:1", **options)


def test_an_address_opens_one_editor_for_each_url() -> None:
    line = "vllm-omni+http://a:8000/v1,https://b/x?steps=8&negative_prompt=dark%20sky&size=512#Qwen/Edit"
    editors = open_editors(line, size=256, capacity=None)
    assert [type(e) for e in editors] == [OpenAIImagesEditor] * 2
    assert [e.host for e in editors] == ["a:8000", "b"] and {e.name for e in editors} == {"Qwen/Edit"}
    assert {(e.size, e.capacity, e.dialect) for e in editors if isinstance(e, OpenAIImagesEditor)} == {
        (256, None, "vllm-omni")
    }
    assert editors[0].settings == {"steps": 8, "negative_prompt": "dark sky"}
    (service,) = open_editors("editthinker+http://c:8005?negative_prompt=7")
    assert isinstance(service, EditThinkerEditor) and service.settings == {"negative_prompt": "7"}
    for wrong, said in (
        ("editthinkr+http://c", "did you mean editthinker"),
        ("http://c?stops=3", "did you mean steps"),
    ):
        with pytest.raises(ModelError, match=said):
            open_editors(wrong)
