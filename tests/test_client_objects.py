# SPDX-License-Identifier: Apache-2.0
"""Run objects: ids, fields, the books that are kept of their states, comparison, sorting."""

from __future__ import annotations

import copy
import time
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest

from microflow.client.objects import (
    Constant,
    FlowRun,
    FlowRunResult,
    Parameter,
    TaskRun,
    TaskRunResult,
    new_run_id,
    sort_key,
)
from microflow.states import (
    AwaitingRetry,
    Cancelled,
    Completed,
    Crashed,
    Failed,
    Paused,
    Pending,
    Retrying,
    Running,
    Scheduled,
    State,
    Suspended,
)

ID = UUID(int=1)


def at(us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=us)


def flow_run(**fields: Any) -> FlowRun:
    return FlowRun(ID, "calm-reef", flow_name="main", **fields)


def task_run(**fields: Any) -> TaskRun:
    return TaskRun(ID, "add-1", task_key="add-0", **fields)


def entered(run: Any, *states: State) -> Any:
    """The run after it entered the states, at 10, 20, 30 … microseconds."""
    for number, state in enumerate(states, start=1):
        state.at = 10 * number
        run.enter(state)
    return run


# ------------------------------------------------------------------------------------------------ ids


def test_a_run_id_is_a_uuid_of_version_7_and_sorts_by_time():
    before = time.time_ns() // 1_000_000
    ids = [new_run_id() for _ in range(200)]
    after = time.time_ns() // 1_000_000
    assert {(one.version, one.variant) for one in ids} == {(7, "specified in RFC 4122")}
    assert all(before <= one.int >> 80 <= after for one in ids)
    assert len(set(ids)) == 200
    first = new_run_id()
    while time.time_ns() // 1_000_000 <= first.int >> 80:
        pass
    assert str(first) < str(new_run_id())


def test_the_random_bits_of_a_run_id_are_all_drawn():
    seen = 0
    for _ in range(400):
        seen |= new_run_id().int
    assert seen & (1 << 62) - 1 == (1 << 62) - 1
    assert seen >> 64 & 0xFFF == 0xFFF


# ------------------------------------------------------------------------------------------------ inputs


def test_inputs_compare_by_kind_and_content_and_can_be_put_into_a_set():
    assert TaskRunResult(id=ID) == TaskRunResult(id=ID)
    assert TaskRunResult(id=ID) != FlowRunResult(id=ID)
    assert Parameter(name="x") != Constant(type="x")
    assert len({TaskRunResult(id=ID), TaskRunResult(id=ID), Parameter(name="x"), Parameter(name="x")}) == 2
    assert repr(Parameter(name="x")) == "Parameter(x)"
    assert [kind.input_type for kind in (TaskRunResult, FlowRunResult, Parameter, Constant)] == [
        "task_run",
        "flow_run",
        "parameter",
        "constant",
    ]


# ------------------------------------------------------------------------------------------------ the books


def test_a_run_without_a_state_has_no_moments():
    run = flow_run()
    assert (run.state, run.state_id, run.state_type, run.state_name, run.state_timestamp) == (None,) * 5
    assert (run.start_time, run.end_time, run.expected_start_time, run.run_count) == (None, None, None, 0)
    assert run.total_run_time == run.estimated_run_time == timedelta(0)


@pytest.mark.parametrize("make", [flow_run, task_run])
def test_the_books_of_a_plain_run(make):
    run = entered(make(), Pending(), Running(), Completed())
    assert (run.state_type, run.state_name, run.state_timestamp) == ("COMPLETED", "Completed", at(30))
    assert (run.created, run.expected_start_time, run.start_time, run.end_time) == (at(10), at(10), at(20), at(30))
    assert (run.run_count, run.total_run_time) == (1, timedelta(microseconds=10))


def test_time_between_attempts_and_in_a_pause_does_not_count_as_run_time():
    run = entered(flow_run(), Running(), AwaitingRetry(), Running(), Paused(), Running(), Failed())
    assert run.total_run_time == timedelta(microseconds=30)
    assert (run.run_count, run.start_time, run.end_time) == (2, at(10), at(60)), "going on after a pause is no new run"


def test_retrying_counts_the_time_of_both_attempts():
    run = entered(task_run(), Running(), Retrying(), Completed())
    assert (run.run_count, run.total_run_time) == (2, timedelta(microseconds=20))


def test_a_suspended_run_that_is_resumed_is_no_further_run():
    run = entered(flow_run(), Running(), Suspended(), Scheduled(name="Resuming"), Running())
    assert run.run_count == 1


def test_a_run_that_is_started_again_has_no_end_until_it_ends_again():
    run = entered(flow_run(), Running(), Failed())
    for number, state in enumerate((Pending(), Running()), start=3):
        state.at = 10 * number
        run.enter(state)
        assert run.end_time is None
    run.enter(Cancelled(timestamp=at(99)))
    assert (run.start_time, run.end_time) == (at(10), at(99))


def test_a_final_state_after_a_final_one_moves_no_end_time():
    run = entered(flow_run(), Running(), Failed(), Crashed())
    assert run.end_time == at(20)


def test_a_run_that_was_scheduled_is_expected_at_that_time():
    run = entered(flow_run(), Scheduled(scheduled_time=at(500)))
    assert (run.expected_start_time, run.next_scheduled_start_time) == (at(500), at(500))
    run.enter(Pending())
    assert (run.expected_start_time, run.next_scheduled_start_time) == (at(500), None)


def test_an_attempt_ends_with_each_awaiting_retry():
    run = entered(flow_run(), Running(), AwaitingRetry(), Running(), AwaitingRetry())
    assert run.attempt == 2


def test_the_estimate_of_a_running_run_includes_the_present():
    run = flow_run()
    run.enter(Running(timestamp=datetime.now(timezone.utc) - timedelta(seconds=5)))
    assert timedelta(seconds=5) <= run.estimated_run_time < timedelta(seconds=60)
    assert run.total_run_time == timedelta(0)


def test_the_id_of_the_present_state_follows_from_the_run_also_when_it_was_asked_for_before():
    """Every reader of the log must see the same id."""
    early, late = Running(timestamp=at(5)), Running(timestamp=at(5))
    early.id
    run = flow_run()
    for state in (early, late):
        state.state_details.flow_run_id = ID
        run.enter(state)
    assert early.id == late.id == run.state_id


def test_moments_can_be_set_as_datetimes():
    run = flow_run()
    run.start_time = at(7)
    assert run.start_time == at(7)
    run.start_time = None
    assert run.start_time is None


# ------------------------------------------------------------------------------------------------ as values


def test_runs_compare_by_all_their_fields():
    one, two = flow_run(tags={"a"}), flow_run(tags={"a"})
    assert one == two
    assert hash(one) == hash(two)
    one.text  # a text that was made meanwhile is no field
    assert one == two
    two.name = "other"
    assert one != two
    assert flow_run() != task_run()
    assert task_run(tags={"x"}) != task_run()


def test_a_copy_is_equal_and_moves_on_its_own():
    run = entered(flow_run(), Running())
    twin = copy.copy(run)
    assert twin == run
    twin.enter(Completed())
    assert run.state_type == "RUNNING"


def test_a_flow_run_is_its_own_root_unless_told_otherwise():
    root = uuid4()
    assert flow_run().root_flow_run_id == ID
    assert flow_run(root_flow_run_id=root).root_flow_run_id == root


def test_collections_that_were_not_given_are_not_shared():
    one, two = task_run(), task_run()
    one.tags.add("x")
    one.task_inputs["x"] = []
    one.empirical_policy["retries"] = 1
    assert (two.tags, two.task_inputs, two.empirical_policy) == (set(), {}, {})


def test_a_run_shows_id_name_and_state():
    assert repr(entered(flow_run(), Running())) == f"FlowRun(id={ID}, name='calm-reef', state=Running())"
    assert task_run().dynamic_key == task_run().text == str(ID)


def test_runs_sort_by_a_field_and_those_without_it_last():
    runs = [flow_run(), flow_run(), flow_run()]
    runs[0].start_time, runs[2].start_time = at(5), at(3)
    assert sorted(runs, key=sort_key("start_time")) == [runs[2], runs[0], runs[1]]
    with pytest.raises(AttributeError):
        runs.sort(key=sort_key("colour"))
