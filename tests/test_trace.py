"""A trace is the fold of its events, and is the same object after JSON."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from premeditate.trace import (
    Answer,
    ChainStopped,
    Checklist,
    ChecklistItem,
    ChecklistWritten,
    Critique,
    Edit,
    Event,
    Finished,
    ImageRef,
    Plan,
    PlanWritten,
    RoundCritiqued,
    RoundEdited,
    RoundJudged,
    Selection,
    Started,
    Task,
    Trace,
    Verdict,
)

EVENT: TypeAdapter[Event] = TypeAdapter(Event)

# Text as a model may write it: any Unicode but lone surrogates, which UTF-8 cannot hold.
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
seconds = st.floats(0, 1e6)
unit = st.floats(0, 1)
status = st.sampled_from(["scored", "refused", "unparsable", "unavailable"])
json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
table = st.dictionaries(text, json, max_size=3)
refs = st.builds(
    ImageRef,
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    width=st.integers(1, 16_000),
    height=st.integers(1, 16_000),
)
tasks = st.builds(Task, id=text, images=st.lists(refs, min_size=1, max_size=2).map(tuple), instruction=text, meta=table)
items = st.builds(ChecklistItem, question=text, dimension=st.sampled_from(["follow", "keep", "quality"]))
some_text = st.lists(text, max_size=3).map(tuple)
checklists = st.builds(
    Checklist, status=status, items=st.lists(items, max_size=3).map(tuple), raw=text, seconds=seconds
)
plans = st.builds(Plan, status=status, steps=some_text, explanation=text, raw=text, seconds=seconds)
edits = st.builds(
    Edit,
    prompt=text,
    base=st.sampled_from(["original", "last"]),
    source=refs,
    image=refs,
    seed=st.integers(0, 2**63 - 1),
    editor=text,
    seconds=seconds,
)
answers = st.builds(
    Answer, item=items, status=status, yes=st.none() | st.booleans(), p_yes=st.none() | unit, evidence=text
)
verdicts = st.builds(
    Verdict,
    status=status,
    answers=st.lists(answers, max_size=3).map(tuple),
    scores=st.dictionaries(st.sampled_from(["follow", "keep", "quality"]), unit, max_size=3),
    reason=text,
)
critiques = st.builds(
    Critique,
    status=status,
    satisfied=st.none() | st.booleans(),
    problem=text,
    semantic=st.none() | st.floats(0, 10),
    quality=st.none() | st.floats(0, 10),
    prompt=some_text,
    base=st.sampled_from(["original", "last"]),
    raw=text,
)


@st.composite
def histories(draw: st.DrawFn, trace_id: str | None = None) -> list[Event]:
    """The events of one trace, in an order in which an engine could have written them."""
    chains = draw(st.integers(1, 3))
    name = trace_id or draw(ids)
    events: list[Event] = [
        Started(trace_id=name, task=draw(tasks), settings=draw(table), versions={"python": "3"}, chains=chains)
    ]
    rounds = [0] * chains
    for _ in range(draw(st.integers(0, 8))):
        chain = draw(st.integers(0, chains - 1))
        kind = draw(st.sampled_from(["checklist", "plan", "edited", "judged", "critiqued", "stopped"]))
        if kind == "checklist":
            events.append(ChecklistWritten(checklist=draw(checklists)))
        elif kind == "plan":
            events.append(PlanWritten(chain=chain, plan=draw(plans)))
        elif kind == "stopped":
            events.append(ChainStopped(chain=chain, reason=draw(text), error=draw(st.none() | text)))
        elif kind == "edited" or rounds[chain] == 0:
            rounds[chain] += 1
            made = tuple(draw(st.lists(edits, min_size=1, max_size=2)))
            events.append(RoundEdited(chain=chain, edits=made))
        else:
            index = draw(st.integers(0, rounds[chain] - 1))
            if kind == "judged":
                events.append(RoundJudged(chain=chain, round=index, verdict=draw(verdicts)))
            else:
                events.append(RoundCritiqued(chain=chain, round=index, critique=draw(critiques)))
    if draw(st.booleans()):
        chosen = [chain for chain in range(chains) if rounds[chain]]
        selection = None
        if chosen:
            chain = draw(st.sampled_from(chosen))
            selection = Selection(
                chain=chain,
                round=draw(st.integers(0, rounds[chain] - 1)),
                verified=draw(st.booleans()),
                reason=draw(text),
            )
        events.append(Finished(selection=selection, seconds=draw(seconds), calls={"edit": sum(rounds)}))
    return events


def fold(events: list[Event]) -> Trace:
    assert isinstance(events[0], Started)
    trace = Trace.start(events[0])
    for event in events[1:]:
        trace = trace.apply(event)
    return trace


@given(histories())
def test_events_and_traces_survive_json(events: list[Event]) -> None:
    again = [EVENT.validate_json(EVENT.dump_json(event)) for event in events]
    assert again == events
    trace = fold(events)
    assert fold(again) == trace
    assert Trace.model_validate_json(trace.model_dump_json()) == trace
    assert sum(len(chain.rounds) for chain in trace.chains) == sum(isinstance(e, RoundEdited) for e in events)
    assert trace.finished == isinstance(events[-1], Finished)


@given(histories(), st.integers(0, 8))
def test_a_prefix_of_the_events_is_a_trace(events: list[Event], length: int) -> None:
    trace = fold(events[: length + 1])
    assert trace.id == fold(events).id and len(trace.chains) == len(fold(events).chains)


REF = ImageRef(sha256="a" * 64, width=2, height=3)
START = Started(trace_id="t", task=Task(id="x", images=(REF,), instruction="go"), chains=1)
EDITED = RoundEdited(chain=0, edits=(Edit(prompt="p", base="original", source=REF, image=REF, seed=0),))


@pytest.mark.parametrize(
    "event",
    [
        START,
        PlanWritten(chain=1, plan=Plan()),
        PlanWritten(chain=-1, plan=Plan()),
        RoundJudged(chain=0, round=1, verdict=Verdict(status="scored")),
        RoundCritiqued(chain=0, round=-1, critique=Critique(status="scored")),
    ],
)
def test_events_that_do_not_follow_are_refused(event: Event) -> None:
    with pytest.raises(ValueError, match=r"already started|of 1"):
        fold([START, EDITED]).apply(event)


def test_records_cannot_be_changed_or_extended() -> None:
    trace = fold([START])
    with pytest.raises(ValidationError):
        trace.id = "other"
    with pytest.raises(ValidationError):
        Trace.model_validate({**trace.model_dump(), "surprise": 1})


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (ImageRef, {"sha256": "../../etc/passwd", "width": 1, "height": 1}),
        (ImageRef, {"sha256": "a" * 64, "width": 0, "height": 1}),
        (Task, {"id": "x", "instruction": "go"}),
        (ChecklistItem, {"question": "?", "dimension": "beauty"}),
        (Answer, {"item": {"question": "?", "dimension": "keep"}, "status": "scored", "p_yes": 1.5}),
        (Critique, {"status": "guessed"}),
        (RoundEdited, {"chain": 0, "edits": [{"prompt": "p"}]}),
    ],
)
def test_values_out_of_range_are_refused(kind: type[BaseModel], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(values)


@given(verdicts)
def test_a_verdict_passes_only_if_everything_was_answered_yes(verdict: Verdict) -> None:
    if verdict.passed:
        assert verdict.status == "scored" and verdict.answers and all(a.yes for a in verdict.answers)
    if verdict.status != "scored" or not verdict.answers:
        assert verdict.score is None and not verdict.passed
    if verdict.score is not None:
        assert 0 <= verdict.score <= 1


def test_the_chosen_round() -> None:
    trace = fold([START, EDITED])
    assert trace.chosen is None and not trace.verified and trace.chains[0].rounds[0].prompt == "p"
    done = trace.apply(Finished(selection=Selection(chain=0, round=0, verified=True, reason="it passed")))
    assert done.verified and done.chosen == done.chains[0].rounds[0] and done.chosen.image == REF
