"""Any function as an editor or a reasoner."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from PIL import Image

from premeditate.editors.base import Editor, EditRequest, EditResult
from premeditate.editors.callable import CallableEditor
from premeditate.reasoners.base import ChatRequest, Completion, Reasoner
from premeditate.reasoners.callable import CallableReasoner
from support.pictures import picture


def edit(editor: Editor, *requests: EditRequest) -> list[EditResult]:
    return list(asyncio.run(editor.edit(requests)))


def chat(reasoner: Reasoner, *requests: ChatRequest) -> list[Completion]:
    return list(asyncio.run(reasoner.chat(requests)))


def test_callable_editors() -> None:
    source = picture(20, 10)

    def invert(image: Image.Image, prompt: str) -> Image.Image:
        if prompt == "no":
            raise KeyError("no such colour")
        return Image.eval(image, lambda v: 255 - v).resize((40, 20))

    async def by_seed(image: Image.Image, prompt: str, seed: int) -> Image.Image:
        await asyncio.sleep(0)
        return Image.new("RGBA", image.size, (seed, 0, 0, 255))

    def number(image: Image.Image, prompt: str, *, images: tuple[Image.Image, ...]) -> Any:
        return len(images)

    good, bad = edit(CallableEditor(invert), EditRequest((source,), "yes"), EditRequest((source,), "no"))
    assert good.image is not None and good.image.size == (20, 10) and good.error is None
    assert bad.image is None and bad.error == "KeyError: 'no such colour'"
    (red,) = edit(CallableEditor(by_seed, name="red"), EditRequest((source,), "", seed=200))
    assert red.image is not None and red.image.getpixel((0, 0)) == (200, 0, 0)
    (wrong,) = edit(CallableEditor(number), EditRequest((source,), ""))
    assert wrong.error == "TypeError: number returned int, not a PIL image"
    assert isinstance(CallableEditor(invert), Editor) and CallableEditor(invert).name == "invert"
    with pytest.raises(ValueError, match="needs a function"):
        CallableEditor("invert")  # type: ignore[arg-type]


def test_callable_reasoners() -> None:
    def fixed(request: ChatRequest) -> Any:
        return {"boom": lambda: 1 / 0, "text": lambda: "said", "weights": lambda: {"yes": 3, "no": 1},
                "word": lambda: " No. ", "odd": lambda: "perhaps", "other": lambda: {"maybe": 1.0},
                "number": lambda: 7}[request.text]()  # fmt: skip

    async def polite(request: ChatRequest) -> Completion:
        return Completion(text=request.text.upper(), seconds=2.5)

    ask = {name: ChatRequest((), name, ("yes", "no")) for name in ("weights", "word", "odd", "other", "text")}
    say = {name: ChatRequest((), name) for name in ("text", "boom", "number")}
    reasoner = CallableReasoner(fixed, prompts="terse")
    got = chat(reasoner, *ask.values())
    assert got[0].probabilities == {"yes": 0.75, "no": 0.25} and got[1].probabilities == {"yes": 0.0, "no": 1.0}
    assert all(c.error and not c.probabilities for c in got[2:])
    said, boom, number = chat(reasoner, *say.values())
    assert said.text == "said" and said.error is None
    assert boom.error == "ZeroDivisionError: division by zero" and "returned int" in str(number.error)
    (loud,) = chat(CallableReasoner(polite), ChatRequest((), "hello"))
    assert (loud.text, loud.seconds) == ("HELLO", 2.5)
    assert isinstance(reasoner, Reasoner) and (reasoner.name, reasoner.prompts) == ("fixed", "terse")
