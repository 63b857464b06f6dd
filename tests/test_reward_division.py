"""Rewards on another machine: what cannot be sent together is divided, down to samples or whole groups."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from premeditate.rewards.base import Sample
from support.reward_server import NOISE, RED, Server, ask, b64, counted, score
from support.rewards import function, k_of, noise, panel_of, sample, samples


def test_a_client_divides_what_is_too_heavy_together() -> None:
    reward, calls = counted()
    one = len(json.dumps(ask(b64(NOISE)))) + 400
    with Server(reward, bytes=2 * one) as server:
        given = [sample(NOISE, noise(24, 16, seed), k=seed) for seed in range(5)]
        assert [v.scores["score"] for v in score(server.client(), given)] == [0, 1, 2, 3, 4]
        assert sum(calls) == 5 and max(calls) < 5
        heavy = [sample(NOISE, noise(240, 160), k=9), sample(RED, RED, k=1)]
        lost, kept = score(server.client(), heavy)
        assert lost.status == "unavailable" and "413" in lost.reason and kept.scores == {"score": 1}


def test_what_is_too_heavy_is_divided_into_whole_groups() -> None:
    calls: list[list[str]] = []

    def rank(ss: Sequence[Sample]) -> list[float]:
        calls.append([s.group for s in ss])
        return [float(k_of(s)) for s in ss]

    group = len(json.dumps(ask(b64(NOISE), b64(NOISE)))) + 1000
    with Server(function(rank, name="rank", groupwise=True), bytes=2 * group) as server:
        # g0, g1, g2, g3, g0, ...: the members of a group do not stand side by side
        given = [sample(NOISE, noise(24, 16, k), f"g{k % 4}", k=k) for k in range(8)]
        assert [v.scores["score"] for v in score(server.client(), given)] == list(range(8))
        assert sorted(name for call in calls for name in call) == [f"g{k // 2}" for k in range(8)]
        assert len(calls) > 1 and all(call.count(name) == 2 for call in calls for name in call)
        heavy = sample(NOISE, noise(240, 160), "g0", k=9)
        verdicts = score(server.client(), [*given, heavy])  # and its group with it
        assert [v.scores.get("score") for v in verdicts] == [None, 1, 2, 3, None, 5, 6, 7, None]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"meta": {"when": {1, 2}}}, "a task's meta is no JSON"),
        ({"meta": {"said": "\ud800"}}, "422"),
        ({"id": "x" * 1001}, "at most 1000 characters"),
    ],
)
def test_what_no_request_can_carry_costs_itself_only(bad: dict[str, Any], said: str) -> None:
    reward, calls = counted()
    with Server(reward) as server, panel_of(server.client()) as panel:
        given = samples(7)
        given[3] = replace(given[3], task=given[3].task.model_copy(update=bad))
        scores = panel.score(given)
    assert [row[0] for row in scores.statuses] == ["unavailable" if k == 3 else "scored" for k in range(7)]
    assert said in scores.verdicts[3][0].reason and sum(calls) == 6


def test_a_group_that_is_refused_does_not_cost_the_other_groups() -> None:
    with Server(function(lambda ss: [1.0] * len(ss), name="rank", groupwise=True)) as server:
        given = samples(8, group_size=2)
        given[5] = replace(given[5], group="g2", task=given[5].task.model_copy(update={"meta": {"when": {1}}}))
        assert [v.status for v in score(server.client(), given)] == [
            "unavailable" if k in (4, 5) else "scored" for k in range(8)
        ]
