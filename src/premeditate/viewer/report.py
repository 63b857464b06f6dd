"""The report of a trace and the index of a run, as HTML files that need nothing but a browser.

Everything is inline: pictures as data URIs, one style sheet, one short script. The page's own content security policy
allows that style sheet and that script (by hash) and nothing else, so that text written by a model or a user, which is
escaped everywhere, could not act even if escaping failed.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from premeditate.trace import Round, Trace, Verdict
from premeditate.viewer.pictures import Album, Images

if TYPE_CHECKING:
    from premeditate.trace import Chain

DIMENSIONS = ("follow", "keep", "quality")
_TEMPLATES = Path(__file__).parent / "templates"


class Run(Images, Protocol):
    """What an index is made of: a `RunStore`."""

    def traces(self) -> Iterable[str]: ...
    def trace(self, trace_id: str) -> Trace: ...


@dataclass(frozen=True)
class State:
    """How an edit ended: `kind` verified, unverified, failed or unfinished; `label` and `why` say it in words."""

    kind: str
    label: str
    why: str


def state_of(trace: Trace) -> State:
    if trace.verified and trace.selection:
        return State("verified", "Verified", trace.selection.reason)
    if trace.error:
        return State("failed", "Failed", trace.error)
    if not trace.finished:
        return State("unfinished", "Unfinished", "the run stopped before a round was chosen; this is all it wrote")
    if trace.selection is None:
        return State("failed", "Failed", "no round could be chosen")
    return State("unverified", "Not verified", trace.selection.reason)


def headline(trace: Trace) -> str:
    """What a trace is about; the task's name where its instruction could not be read either."""
    return trace.task.instruction or trace.task.id


def render(trace: Trace, store: Images) -> str:
    """The report of one trace as a single HTML file. Pictures that cannot be read are named as missing, in place."""
    return _page(
        "report.html",
        trace=trace,
        album=Album(store),
        state=state_of(trace),
        phases=phases(trace),
        facts=facts(trace),
        title=headline(trace),
    )


def render_run(store: Run, link: str = "{id}.html", title: str = "") -> str:
    """The index of all traces of a run. `link`: where a trace's own report lies, with {id} for its id; "" for none."""
    entries = []
    album = Album(store, longest=160)
    for trace_id in store.traces():
        try:
            trace = store.trace(trace_id)
            href = quote(link.format(id=trace_id)) if link else ""
            entries.append({"id": trace_id, "trace": trace, "state": state_of(trace), "href": href, "error": ""})
        except ValueError as error:  # one damaged trace must not hide the others
            entries.append(
                {
                    "id": trace_id,
                    "trace": None,
                    "state": State("failed", "Unreadable", str(error)),
                    "href": "",
                    "error": str(error),
                }
            )
    counts = {
        kind: sum(e["state"].kind == kind for e in entries)  # type: ignore[attr-defined]
        for kind in ("verified", "unverified", "failed", "unfinished")
    }
    return _page("index.html", entries=entries, album=album, counts=counts, title=title or "Run")


def write_run(store: Run, out: Path) -> list[Path]:
    """Writes a run's page to `out`: the report itself for a run of one trace, otherwise an index, with the reports in
    a folder beside it that is named like `out` without its suffix. Returns the files written, `out` first.

    Raises `WriteError` where one cannot be written.
    """
    from premeditate.files import write_atomic

    ids = list(store.traces())
    if len(ids) == 1:
        return [write_atomic(out, render(store.trace(ids[0]), store).encode())]
    folder = out.with_name(out.stem + "-traces")
    index = render_run(store, link=f"{folder.name}/{{id}}.html", title=getattr(store, "path", Path(out.stem)).name)
    pages = []
    for trace_id in ids:
        try:
            trace = store.trace(trace_id)
        except ValueError:  # the index says that it cannot be read
            continue
        pages.append(write_atomic(folder / f"{trace_id}.html", render(trace, store).encode(), sync=False))
    return [write_atomic(out, index.encode()), *pages]


def phases(trace: Trace) -> list[tuple[str, float]]:
    """Seconds by kind of work, summed over all chains: what ran side by side counts in full."""
    spent = {
        "plan": 0.0,
        "checklist": trace.checklist.seconds if trace.checklist else 0.0,
        "edit": 0.0,
        "check": 0.0,
        "critique": 0.0,
    }
    for chain in trace.chains:
        spent["plan"] += chain.plan.seconds if chain.plan else 0.0
        for one in chain.rounds:
            spent["edit"] += sum(e.seconds for e in one.edits)
            spent["check"] += one.verdict.seconds if one.verdict else 0.0
            spent["critique"] += one.critique.seconds if one.critique else 0.0
    return [(name, seconds) for name, seconds in spent.items() if seconds > 0]


def facts(trace: Trace) -> list[tuple[str, str]]:
    """What ran, in words: models, prompt authors, seeds, versions. Settings come first, as they were asked for."""
    rounds = [r for c in trace.chains for r in c.rounds]
    authors = [
        ("planner", {c.plan.author for c in trace.chains if c.plan}),
        ("checklist author", {trace.checklist.author} if trace.checklist else set()),
        ("editor", {e.editor for r in rounds for e in r.edits}),
        ("verifier", {r.verdict.verifier for r in rounds if r.verdict}),
        ("critic", {r.critique.author for r in rounds if r.critique}),
    ]
    seeds = dict.fromkeys(e.seed for r in rounds for e in r.edits)
    out = [
        (name.replace("_", " "), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in trace.settings.items()
    ]
    asked = {name for name, _ in out}
    for name, names in authors:
        if found := ", ".join(sorted(filter(None, names))):
            out.append((f"{name} used" if name in asked else name, found))
    if seeds:
        out.append(("editor seeds", ", ".join(map(str, seeds))))
    if trace.calls:
        out.append(("calls", ", ".join(f"{name} {count}" for name, count in trace.calls.items())))
    if trace.versions:
        out.append(("versions", ", ".join(f"{name} {version}" for name, version in trace.versions.items())))
    return out


# -- what the templates call ------------------------------------------------------------------------------------------


def seconds(value: float) -> str:
    """Seconds in words, with no-break spaces."""
    if value < 0.995:
        return f"{value:.2f}\u00a0s" if value >= 0.01 or value == 0 else "<\u00a00.01\u00a0s"
    if value < 100:
        return f"{value:.1f}\u00a0s"
    return f"{round(value) // 60}\u00a0min {round(value) % 60}\u00a0s"


def percent(value: float) -> str:
    """A share (0-1) in percent, that never rounds to a certainty it is not."""
    if 0 < value < 0.01:
        return "<\u00a01\u00a0%"
    if 0.99 < value < 1:
        return ">\u00a099\u00a0%"
    return f"{100 * value:.0f}\u00a0%"


def by_dimension(verdict: Verdict) -> list[tuple[str, list[Any]]]:
    return [(d, found) for d in DIMENSIONS if (found := [a for a in verdict.answers if a.item.dimension == d])]


def plain_json(trace: Trace) -> str:
    return json.dumps(trace.model_dump(mode="json"), indent=2, ensure_ascii=False)


def embedded_json(trace: Trace) -> Markup:
    """JSON for a script element: no character in it can end the element."""
    text = json.dumps(trace.model_dump(mode="json"), ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def json_uri(trace: Trace) -> str:
    return "data:application/json;base64," + base64.b64encode(plain_json(trace).encode()).decode("ascii")


def questions(chains: Iterable[Chain]) -> list[tuple[str, str]]:
    """(dimension, question) asked in any round, each once, in the order of the dimensions."""
    found = dict.fromkeys(
        (a.item.dimension, a.item.question) for c in chains for r in c.rounds if r.verdict for a in r.verdict.answers
    )
    return sorted(found, key=lambda pair: DIMENSIONS.index(pair[0]))


def answer_to(one: Round, question: tuple[str, str]) -> Any:
    """The round's answer to (dimension, question), or None where it was not asked."""
    if one.verdict is None:
        return None
    return next((a for a in one.verdict.answers if (a.item.dimension, a.item.question) == question), None)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        headline=headline,
        seconds=seconds,
        percent=percent,
        by_dimension=by_dimension,
        json_uri=json_uri,
        plain_json=plain_json,
        embedded_json=embedded_json,
    )
    environment.globals.update(questions=questions, answer_to=answer_to)
    return environment


@cache
def _inline(name: str) -> tuple[Markup, str]:
    """A file of this package as it stands in the page, and its hash for the content security policy."""
    text = (_TEMPLATES / name).read_text(encoding="utf-8").strip()
    return Markup(text), "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _page(template: str, **values: Any) -> str:
    style, style_hash = _inline("page.css")
    script, script_hash = _inline("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{style_hash}'; script-src '{script_hash}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return _environment().get_template(template).render(style=style, script=script, policy=policy, **values)
