"""The report: complete, escaped, honest about what is missing, and asking nothing of the network."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from premeditate.store import RunStore
from premeditate.trace import Answer, Checklist, ChecklistItem, Critique, Finished, Plan, Started, Trace, Verdict
from premeditate.viewer.pictures import Album, data_uri, difference
from premeditate.viewer.report import percent, render, render_run, seconds, write_run
from sample_traces import INSTRUCTION, PLAN, Memory, sample

EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script> \" ' & <|im_start|>"


class Page(HTMLParser):
    """Elements, attributes and visible text of a page; complains about unbalanced elements."""

    VOID = frozenset({"meta", "link", "img", "input", "br", "rect"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def memory() -> Memory:
    return Memory()


def changed(trace: Trace, **verdict: object) -> Trace:
    """The trace with its only chain's last round judged otherwise."""
    chain = trace.chains[0]
    last = chain.rounds[-1].model_copy(update=verdict)
    chain = chain.model_copy(update={"rounds": (*chain.rounds[:-1], last)})
    return trace.model_copy(update={"chains": (chain,)})


def test_report_holds_everything_the_trace_says(memory: Memory) -> None:
    trace = sample(memory)
    page = Page(render(trace, memory))
    for words in (
        INSTRUCTION,
        "Verified",
        PLAN,
        "remove the red star at b3",
        "b3 is wrong",
        "is there a large green star",
        "is everything except b3 unchanged?",
        "is every shape sharp?",
        "the only round that passed every check",
        "think-while-edit",
        "premeditate/micro-editor",
        "seed 7",
        "seed 8",
        "torch 2.13.0",
        trace.id,
        "Round 1",
        "Round 2",
        "chosen",
        "2 /10",
        "all the others are circles",
    ):
        assert words in page.text, words
    data = next(json.loads(s) for s in page.scripts if s.startswith("{"))
    assert Trace.model_validate(data) == trace
    link = next(a for a in page.all("a") if "download" in a)
    assert Trace.model_validate_json(base64.b64decode(str(link["href"]).split(",")[1])) == trace


def test_page_is_one_file_without_requests_and_with_a_strict_policy(memory: Memory) -> None:
    html = render(sample(memory), memory)
    page = Page(html)
    policy = next(str(m["content"]) for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", re.sub(r"data:[^\"]*", "", html))


def test_page_is_accessible(memory: Memory) -> None:
    page = Page(render(sample(memory, chains=((PLAN,), ("remove the red star at b3",))), memory))
    assert all(image.get("alt") for image in page.all("img"))
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert page.all("html")[0]["lang"] == "en"
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        if (target := attributes.get("href") or "").startswith("#"):
            assert target[1:] in ids
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
    slider = next(a for a in page.all("input") if a["type"] == "range")
    assert slider["aria-label"]


def test_words_of_models_and_users_stay_words(memory: Memory) -> None:
    trace = sample(memory, instruction=EVIL)
    item = ChecklistItem(question=EVIL, dimension="follow")
    answers = (Answer(item=item, status="scored", yes=True, p_yes=0.7, evidence=EVIL),)
    trace = changed(
        trace,
        verdict=Verdict(status="scored", answers=answers, reason=EVIL, verifier=EVIL),
        critique=Critique(status="unparsable", raw=EVIL),
    )
    chain = trace.chains[0].model_copy(update={"plan": Plan(steps=(EVIL,), explanation=EVIL), "stopped": EVIL})
    trace = trace.model_copy(update={"chains": (chain,), "settings": {"strategy": EVIL, "x": {EVIL: EVIL}}})
    html = render(trace, memory)
    page = Page(html)
    assert len(page.all("script")) == 2
    assert not [a for _, a in page.elements if "onerror" in a]
    assert page.text.count(EVIL) >= 7
    assert Trace.model_validate(next(json.loads(s) for s in page.scripts if s.startswith("{"))) == trace
    memory.all[trace.id] = trace
    assert len(Page(render_run(memory)).all("script")) == 1


def test_chains_stand_side_by_side_and_every_check_in_one_table(memory: Memory) -> None:
    chains = (("remove the red star at b3", PLAN), ("make the red star at b3 small",))
    page = Page(render(sample(memory, chains=chains), memory))
    assert "Chains side by side" in page.text
    assert "Every check in every round" in page.text
    assert {"c1-r1", "c1-r2", "c2-r1"} <= {a.get("id") for _, a in page.elements}


def test_a_stepwise_round_shows_each_step(memory: Memory) -> None:
    trace = sample(
        memory, chains=(("remove the red star at b3 then paint the orange circle at a2 green",),), stepwise=True
    )
    assert [a["alt"] for a in Page(render(trace, memory)).all("img") if "After step" in str(a["alt"])] == [
        "After step 1",
        "After step 2",
    ]


def test_what_was_not_scored_is_said_and_never_looks_passed(memory: Memory) -> None:
    trace = sample(memory, chains=(("remove the red star at b3",),))
    item = ChecklistItem(question="is b3 empty?", dimension="follow")
    verdict = Verdict(status="refused", answers=(Answer(item=item, status="refused"),), reason="it would not say")
    text = Page(render(changed(trace, verdict=verdict, critique=Critique(status="unavailable")), memory)).text
    assert "Not verified" in text
    assert "Not scored (refused)" in text
    assert "it would not say" in text
    assert "No usable critique (unavailable)" in text
    assert "all checks passed" not in text


def test_every_stage_of_a_trace_makes_a_page(store: RunStore, started: Started) -> None:
    """A killed run is a shorter trace; its page opens and says that it is unfinished."""
    store.append("t", started)
    text = Page(render(store.trace("t"), store)).text
    assert "Unfinished" in text
    assert "No round was edited" in text
    trace = store.trace("t").apply(Finished(error="the editor burnt down"))
    text = Page(render(trace, store)).text
    assert "Failed" in text
    assert "the editor burnt down" in text
    trace = trace.model_copy(update={"checklist": Checklist(status="unparsable", raw="blah blah")})
    assert "No usable checklist (unparsable)" in Page(render(trace, store)).text


def test_a_lost_picture_is_named_in_its_place(memory: Memory) -> None:
    trace = sample(memory)
    del memory.images[trace.chains[0].rounds[0].image.sha256]
    page = Page(render(trace, memory))
    assert "Picture missing" in page.text
    assert f"image {trace.chains[0].rounds[0].image.sha256[:12]} is missing" in page.text


def test_small_pictures_are_exact_and_crisp_and_large_ones_shrink() -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    decoded = Image.open(io.BytesIO(base64.b64decode(data_uri(small, 1024).split(",")[1])))
    assert np.array_equal(np.asarray(decoded), np.asarray(small))
    large = Image.new("RGB", (3000, 1500), "teal")
    decoded = Image.open(io.BytesIO(base64.b64decode(data_uri(large, 1024).split(",")[1])))
    assert decoded.size == (1024, 512)
    memory = Memory()
    album = Album(memory)
    assert album.picture(memory.put_image(small)).crisp
    assert not album.picture(memory.put_image(large)).crisp


def test_difference_map_shows_where_and_how_much() -> None:
    before = Image.new("RGB", (40, 20), "white")
    after = before.copy()
    after.paste("red", (30, 0, 40, 20))
    heat, changed, centre = difference(before, after)
    assert (heat.size, changed) == ((40, 20), 0.25)
    assert centre == pytest.approx(0.875)
    array = np.asarray(heat).astype(int).sum(-1)
    assert array[:, 30:].min() > array[:, :30].max() + 100
    assert difference(before, before)[1:] == (0.0, 0.5)
    assert difference(before, after.resize((80, 40)))[0].size == (40, 20)


def test_numbers_never_claim_more_than_is_known() -> None:
    plain = {x: percent(x).replace("\u00a0", " ") for x in (0.0, 0.004, 0.5, 0.996, 1.0)}
    assert plain == {0.0: "0 %", 0.004: "< 1 %", 0.5: "50 %", 0.996: "> 99 %", 1.0: "100 %"}
    assert [seconds(x).replace("\u00a0", " ") for x in (0, 0.001, 0.5, 12.34, 119.6)] == [
        "0.00 s",
        "< 0.01 s",
        "0.50 s",
        "12.3 s",
        "2 min 0 s",
    ]


def test_index_lists_every_edit_and_links_its_report(memory: Memory, tmp_path: Path) -> None:
    sample(memory, trace_id="first")
    sample(memory, chains=(("remove the red star at b3",),), trace_id="second")
    files = write_run(memory, tmp_path / "run.html")
    assert [f.relative_to(tmp_path).as_posix() for f in files] == [
        "run.html",
        "run-traces/first.html",
        "run-traces/second.html",
    ]
    page = Page(files[0].read_text(encoding="utf-8"))
    assert "2 edits · 1 verified · 1 not verified" in page.text
    links = [str(a["href"]) for a in page.all("a") if str(a["href"]).endswith(".html")]
    assert links == ["run-traces/first.html", "run-traces/second.html"]
    assert all((tmp_path / link).is_file() for link in links)


def test_a_run_of_one_is_its_report_and_an_empty_run_says_so(memory: Memory, tmp_path: Path) -> None:
    assert "holds no edit yet" in Page(write_run(memory, tmp_path / "none.html")[0].read_text(encoding="utf-8")).text
    trace = sample(memory)
    assert write_run(memory, tmp_path / "one.html") == [tmp_path / "one.html"]
    assert (tmp_path / "one.html").read_text(encoding="utf-8") == render(trace, memory)


def test_an_unreadable_trace_does_not_hide_the_others(memory: Memory, tmp_path: Path) -> None:
    sample(memory, trace_id="good")

    class Damaged(Memory):
        def traces(self) -> list[str]:
            return ["bad", *memory.all]

        def trace(self, trace_id: str) -> Trace:
            if trace_id == "bad":
                raise ValueError("line 7 is damaged")
            return memory.trace(trace_id)

        def get_image(self, ref: object) -> Image.Image:
            return memory.get_image(ref)  # type: ignore[arg-type]

    files = write_run(Damaged(), tmp_path / "run.html")
    assert [f.name for f in files] == ["run.html", "good.html"]
    text = Page(files[0].read_text(encoding="utf-8")).text
    assert "line 7 is damaged" in text
    assert "Unreadable" in text
