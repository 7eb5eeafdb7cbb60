# SPDX-License-Identifier: Apache-2.0
"""How a failed task run is tried again: how often, after what delay, and on what condition."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

import pytest

import microflow._waits as waits
from microflow.context import TaskRunContext
from tests.behaviour_support import pins
from tests.support import (
    Colour,
    Witness,
    both,
    fake_waits,
    fold,
    memory_home,
    task_ids,
    task_states,
)
from tests.task_support import FAILURE, failing, in_flow

if TYPE_CHECKING:
    from microflow.states import State


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


class TestRetries:
    @both
    def test_without_a_delay_a_retry_follows_at_once(self, colour: Colour, monkeypatch):
        slept = fake_waits(monkeypatch)
        assert in_flow(colour, colour.task(failing(2), retries=3)).result(_sync=True) == 3
        assert task_states("work") == [["Pending", "Running", "Retrying", "Retrying", "Completed"]]
        assert slept == []

    @both
    @pytest.mark.parametrize(
        ("delay", "expected"),
        [(2, [2, 2, 2]), ([1, 2], [1, 2, 2]), (lambda retries: [retries, 5], [3, 5, 5]), ([], []), (0, [])],
    )
    @pins("task_engine", 92, 93)
    def test_delays_are_slept(self, colour: Colour, monkeypatch, delay, expected):
        slept = fake_waits(monkeypatch)
        made = colour.task(failing(3), retries=3, retry_delay_seconds=delay)
        in_flow(colour, made)
        assert slept == pytest.approx(expected, abs=0.2)

    @both
    def test_a_delayed_retry_is_recorded_as_scheduled(self, colour: Colour, monkeypatch):
        fake_waits(monkeypatch)
        in_flow(colour, colour.task(failing(2), retries=1, retry_delay_seconds=60))
        assert task_states("work") == [["Pending", "Running", "AwaitingRetry", "Retrying", "Failed"]]
        (key,) = task_ids("work")
        scheduled = fold().task_states(key)[2]
        due = scheduled.state_details.scheduled_time
        assert due is not None
        assert (due - scheduled.timestamp).total_seconds() == pytest.approx(60, abs=0.5)
        assert scheduled.message == "ValueError: no"

    @both
    def test_a_jitter_lengthens_delays_up_to_its_factor(self, colour: Colour, monkeypatch):
        slept = fake_waits(monkeypatch)
        made = colour.task(failing(20), retries=20, retry_delay_seconds=10, retry_jitter_factor=0.5)
        in_flow(colour, made)
        assert all(9.8 <= seconds <= 15 for seconds in slept)
        assert len({round(seconds, 3) for seconds in slept}) > 10

    @both
    @pins("task_engine", 90)
    def test_the_body_sees_its_state_and_attempt(self, colour: Colour):
        seen: list[tuple[object, ...]] = []

        @colour.task(retries=1)
        def work():
            context = TaskRunContext.get()
            assert context is not None
            seen.append((context.task_run.state_name, context.task_run.run_count, context.start_time))
            if len(seen) < 2:
                raise FAILURE

        in_flow(colour, work)
        assert [item[:2] for item in seen] == [("Running", 1), ("Retrying", 2)]
        assert seen[0][2] < seen[1][2]  # type: ignore[operator]

    @both
    @pins("task_engine", 101)
    def test_inner_and_outer_retries_multiply(self, colour: Colour):
        calls = Witness()

        @colour.task(retries=1)
        def inner():
            calls.saw("inner")
            raise FAILURE

        @colour.task(retries=1)
        def outer():
            yield inner()

        with pytest.raises(ValueError):
            colour.run(outer)
        assert calls["inner"] == 4

    @both
    @pytest.mark.parametrize("answer", [True, False])
    @pins("task_engine", 97)
    def test_the_condition_decides(self, colour: Colour, answer):
        asked: list[State[Any]] = []

        def condition(task, task_run, state):
            asked.append(state)
            assert task_run.run_count == len(asked)
            return answer

        state = in_flow(colour, colour.task(failing(9), retries=2, retry_condition_fn=condition))
        assert state.is_failed()
        assert len(asked) == (2 if answer else 1)  # not asked when no retry is left
        assert asked[0].is_failed()
        with pytest.raises(ValueError, match="no"):
            asked[0].result(_sync=True)

    @both
    def test_the_condition_may_be_an_object_a_partial_or_a_coroutine_function(self, colour: Colour):
        class Never:
            def __call__(self, task, task_run, state):
                return False

        async def never(task, task_run, state):
            return False

        def by_keyword(task, task_run, state, answer):
            return answer

        for condition in (Never(), functools.partial(by_keyword, answer=False), never):
            calls: list[Any] = []
            in_flow(colour, colour.task(failing(9, calls), retries=3, retry_condition_fn=condition))
            assert len(calls) == 1

    @both
    @pins("task_engine", 96)
    def test_a_condition_that_raises_ends_the_retries_and_is_logged(self, colour: Colour, caplog):
        calls: list[Any] = []
        made = colour.task(failing(9, calls), retries=3, retry_condition_fn=lambda *_: 1 / 0)
        with pytest.raises(ValueError, match="no"):
            colour.run(made)
        assert len(calls) == 1
        assert "retry_condition_fn of task 'work' raised" in caplog.text

    @both
    @pins("task_engine", 98)
    def test_what_is_logged_says_whether_retries_are_left(self, colour: Colour, caplog):
        caplog.set_level(logging.INFO)
        in_flow(colour, colour.task(failing(1)))
        assert "Retries are exhausted" not in caplog.text
        in_flow(colour, colour.task(failing(2), retries=1))
        assert "Retry 1/1 will start immediately" in caplog.text
        assert "Retries are exhausted" in caplog.text

    @both
    @pins("task_engine", 99)
    def test_a_failure_that_is_not_to_be_retried_leaves_only_the_last_line(self, colour: Colour, caplog):
        caplog.set_level(logging.INFO)
        in_flow(colour, colour.task(failing(9), retries=2, retry_condition_fn=lambda *_: False))
        lines = [record.getMessage() for record in caplog.records if record.name == "microflow.task_runs"]
        assert [line.partition("(")[0] for line in lines] == ["Finished in state Failed"]

    @both
    @pins("task_engine", 89)
    def test_waiting_for_a_retry_is_not_running(self, colour: Colour, monkeypatch):
        slept, attempts = fake_waits(monkeypatch), list[int]()

        def work():
            waits.time.sleep(5)  # of the clock that stands in
            attempts.append(1)
            if len(attempts) == 1:
                raise FAILURE

        in_flow(colour, colour.task(work, retries=1, retry_delay_seconds=60))
        (key,) = task_ids("work")
        assert slept == pytest.approx([5, 60, 5], abs=1)
        assert 10 <= fold().task_run(key).total_run_time.total_seconds() < 30, "both attempts, and not the delay"

