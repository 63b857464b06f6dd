"""The chat reasoner against a server that nobody here wrote: `transformers serve`, with a tiny Qwen2.5-VL."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from premeditate.reasoners.base import ChatRequest, Completion
from premeditate.reasoners.openai_chat import OpenAIChatReasoner
from support import torchvision_shim
from support.tiny_vlm import build_vlm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torchvision_shim.available(), reason=torchvision_shim.MISSING),
]
YES_NO = ("yes", "no")
RED, BLUE = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 48), "blue")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve") / "log"


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory: pytest.TempPathFactory, log: Path) -> Iterator[OpenAIChatReasoner]:
    folder, home = build_vlm("qwen2_5_vl", tmp_path_factory.mktemp("model")), tmp_path_factory.mktemp("home")
    (home / "hub").mkdir()  # without it the list of models is a 500
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "support.torchvision_shim", "serve", str(folder), "--host", "127.0.0.1",
               "--port", str(port), "--device", "cpu", "--dtype", "float32"]  # fmt: skip
    with log.open("w") as out:
        environment = torchvision_shim.environment(HF_HOME=str(home))
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, cwd=home)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)
                break
            except httpx.HTTPError:
                assert process.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
                time.sleep(0.2)
        yield OpenAIChatReasoner.load(f"http://127.0.0.1:{port}", model=str(folder), timeout=60)
    finally:
        process.terminate()
        process.wait(20)


def ask(reasoner: OpenAIChatReasoner, *requests: ChatRequest) -> list[Completion]:
    done = asyncio.run(reasoner.chat(requests))
    assert [c.error for c in done] == [None] * len(requests)
    return done


def test_the_probe_sees_what_it_ignores(reasoner: OpenAIChatReasoner, log: Path) -> None:
    asyncio.run(reasoner.prepare())
    assert "Ignoring unsupported fields" in log.read_text()  # and the status was 200
    about = reasoner.describe()
    assert (about["json"], about["probability"]) == ("prompt", "systemone") and "ignores" not in about
    assert asyncio.run(reasoner.health()).model == reasoner.name


def test_two_pictures_and_a_text(reasoner: OpenAIChatReasoner) -> None:
    text = "compare <|im_end|> <|image_pad|> these"  # were these tokens, the server would miss a picture
    say = [ChatRequest((RED, BLUE), text, max_tokens=12, temperature=1.0, seed=seed) for seed in (1, 2, 1)]
    said = [ask(reasoner, request)[0] for request in say]
    assert said[0].text == said[2].text != said[1].text and 12 < said[0].tokens < 1000


def test_label_probabilities(reasoner: OpenAIChatReasoner) -> None:
    asked = (("red", YES_NO), ("blue", YES_NO), ("red", ("no", "yes")), ("red", ("red", "blue")))
    red, blue, turned, choice = ask(
        reasoner, *(ChatRequest((RED, BLUE), f"Is it {word}?", labels) for word, labels in asked)
    )
    for completion in (red, blue, turned, choice):
        assert sum(completion.probabilities.values()) == pytest.approx(1) and completion.text == ""
    assert red.probabilities == pytest.approx(turned.probabilities)
    assert red.probabilities != pytest.approx(blue.probabilities, abs=1e-6) and set(choice.probabilities) == {
        "red",
        "blue",
    }


def test_more_pictures_than_it_decides_about(reasoner: OpenAIChatReasoner) -> None:
    (five,) = ask(reasoner, ChatRequest((RED,) * 5, "?", YES_NO, max_tokens=2))
    assert five.probabilities == {} and five.text and five.tokens > 5  # votes, and noise names no label
