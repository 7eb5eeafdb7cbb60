# SPDX-License-Identifier: Apache-2.0
"""The fold: records in, runs out; states to records and back; what readers see when the owner is dead."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microflow._kept import keep
from microflow.client.fold import (
    Run,
    shown,
    shown_parameters,
    shown_result,
    state_of,
    state_record,
    task_record,
)
from microflow.client.objects import Constant, FlowRunResult, Parameter, TaskRun, TaskRunResult
from microflow.events import Record
from microflow.exceptions import MissingResult
from microflow.serializers import to_json
from microflow.states import State, StateDetails, StateType, Value
from microflow.stores import MemoryStore

RUN, TASK = UUID(int=1), UUID(int=2)
STORE = MemoryStore()
NOW = datetime(2025, 11, 21, 3, 4, 5, 678901, timezone.utc)

HEADER = {"k": "run", "name": "calm-reef", "flow": "main", "parameters": {"json": {"n": 3}}}
CLAIM = {"k": "claim", "owner": "0" * 32, "pid": 7, "host": "here"}


def state(kind: str, at: int, run: UUID | None = None, **fields: Any) -> dict[str, Any]:
    return {"k": "state", "type": kind, "at": at, **({"run": str(run)} if run else {}), **fields}


def folded(*lines: list[dict[str, Any]], epoch: int | None = 1, run: Run | None = None) -> Run:
    """The fold of these lines, each written as JSON and read again."""
    run = run or Run(str(RUN), STORE)
    for position, bodies in enumerate(lines, start=run.position):
        read = json.loads(json.dumps(bodies))
        run.fold(Record(str(RUN), position, epoch, 1000 + position, body["k"], body) for body in read)
    return run


def task(name: str = "add", run: UUID = TASK, **fields: Any) -> dict[str, Any]:
    return {"k": "task", "run": str(run), "name": name, "task": "add-0", **fields}


STARTED = [[HEADER, CLAIM, state("PENDING", 10)], [state("RUNNING", 20)]]


# ------------------------------------------------------------------------------------- states and records

moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(timezone.utc))
details = st.fixed_dictionaries(
    {},
    optional={
        "child_flow_run_id": st.uuids(),
        "scheduled_time": moments,
        "cache_key": st.text(),
        "cache_expiration": moments,
        "pause_timeout": moments,
        "pause_reschedule": st.booleans(),
        "pause_key": st.text(),
        "retriable": st.booleans(),
        "transition_id": st.uuids(),
        "run_input_keyset": st.dictionaries(st.text(), st.text()),
    },
)


@given(
    kind=st.sampled_from(StateType),
    name=st.none() | st.text(),
    message=st.none() | st.text(),
    moment=moments,
    details=details,
    value=st.none() | st.integers() | st.text(),
    task=st.booleans(),
)
def test_a_state_comes_back_from_its_record_equal(kind, name, message, moment, details, value, task):
    before: State = State(kind, name, message, moment, details, data=Value(value))
    before.state_details.flow_run_id = RUN
    if task:
        before.state_details.task_run_id = TASK
    entry = keep(value, str(RUN), STORE, "task")
    record = json.loads(json.dumps(state_record(before, str(TASK) if task else None, entry), allow_nan=False))
    after = state_of(record, RUN, TASK if task else None, STORE)
    assert after == before
    assert (after.id, after.created) == (before.id, before.created)


def test_a_record_says_only_what_is_not_the_default():
    plain: State = State("RUNNING", timestamp=NOW, state_details={"flow_run_id": RUN, "pause_reschedule": False})
    assert state_record(plain, None, None) == {"k": "state", "type": "RUNNING", "at": plain.at}


def test_a_task_run_comes_back_from_its_record_equal():
    before = TaskRun(
        TASK,
        "add-1",
        task_key="add-0",
        task_version="2",
        flow_run_id=RUN,
        tags={"b", "a"},
        task_inputs={
            "x": [TaskRunResult(id=UUID(int=3)), FlowRunResult(id=UUID(int=4))],
            "y": [Parameter(name="n"), Constant(type="int")],
            "z": [],
        },
        empirical_policy={"retries": 2, "retry_delay": [1, 2.5]},
        child_flow_run_id=UUID(int=5),
    )
    before.recorded = True
    run = folded([HEADER, task_record(before, "py3-abc")])
    assert run.task_run(str(TASK)) == before
    assert run.tasks[str(TASK)].created["source"] == "py3-abc"


# ------------------------------------------------------------------------------------- the fold


def test_the_header_is_the_flow_run():
    header = {
        **HEADER,
        "flow_version": "3",
        "entrypoint": "a.py:main",
        "tags": ["a"],
        "policy": {"retries": 1},
        "parent_task": str(TASK),
        "parent_flow": str(UUID(int=8)),
        "root": str(UUID(int=9)),
        "key": "once",
    }
    run = folded([header]).flow_run
    assert (run.id, run.name, run.flow_name, run.flow_version) == (RUN, "calm-reef", "main", "3")
    assert (run.entrypoint, run.tags, run.empirical_policy) == ("a.py:main", {"a"}, {"retries": 1})
    assert (run.parent_task_run_id, run.parent_flow_run_id, run.root_flow_run_id) == (TASK, UUID(int=8), UUID(int=9))
    assert (run.idempotency_key, run.parameters) == ("once", {"n": 3})
    assert run.state is None


def test_a_log_without_a_header_is_a_fault_of_ours():
    with pytest.raises(AttributeError, match="flow_run"):
        Run(str(RUN), STORE).flow_run


def test_states_claims_and_releases_move_the_run():
    run = folded(*STARTED)
    assert (run.owner, run.owner_pid, run.owner_host, run.epoch) == ("0" * 32, 7, "here", 1)
    assert [each.type for each in run.states] == ["PENDING", "RUNNING"]
    assert run.position == 2
    folded([state("COMPLETED", 30), {"k": "release"}], run=run)
    assert (run.owner, run.owner_pid, run.owner_host, run.epoch) == (None, None, None, 1)
    assert run.flow_run.state_type == "COMPLETED"
    assert run.flow_run.total_run_time == timedelta(microseconds=10)


def test_a_kind_that_this_version_does_not_fold_changes_nothing_but_the_position():
    run = folded(*STARTED, [{"k": "note", "o": 1}], [{"k": "input", "key": "k"}])
    assert run.position == 4
    assert run.flow_run.state_type == "RUNNING"


@pytest.mark.parametrize("kind", ["flow_run", "_init__", "BY_KIND"])
def test_a_kind_of_a_later_version_never_calls_what_merely_has_its_name(kind):
    """Optional kinds (``"o":1``) that we do not know reach the fold."""
    run = folded(*STARTED, [{"k": kind, "o": 1}])
    assert (run.position, run.flow_run.state_type) == (3, "RUNNING")


def test_a_rename_is_about_the_run_that_it_names():
    renames = [{"k": "rename", "name": "mine"}, {"k": "rename", "run": str(TASK), "name": "t"}]
    run = folded(*STARTED, [task()], renames)
    assert run.flow_run.name == "mine"
    assert run.task_run(str(TASK)).name == "t"
    folded([{"k": "rename", "run": str(uuid4()), "name": "nobody"}], run=run)


def test_a_creation_that_says_since_when_it_is_pending_is_as_one_with_a_record_for_that():
    """Logs were written in the second way before; both are read."""
    running = {"k": "state", "run": str(TASK), "type": "RUNNING", "at": 9}
    created = {"k": "task", "run": str(TASK), "name": "add-1", "task": "add"}
    pending = {"k": "state", "run": str(TASK), "type": "PENDING", "at": 5}
    in_one = folded(*STARTED, [{**created, "at": 5}, running])
    in_two = folded(*STARTED, [created, pending, running])
    assert in_one.task_states(str(TASK)) == in_two.task_states(str(TASK))
    assert in_one.task_run(str(TASK)) == in_two.task_run(str(TASK))
    assert [each.name for each in in_one.task_states(str(TASK))] == ["Pending", "Running"]


def test_task_runs_are_folded_when_they_are_asked_for():
    created = [task(), state("PENDING", 30, TASK), state("RUNNING", 31, TASK)]
    run = folded(*STARTED, created, [state("FAILED", 40, TASK)])
    found = run.task_run(str(TASK))
    assert (found.state_type, found.run_count, found.recorded) == ("FAILED", 1, True)
    assert [each.type for each in run.task_states(str(TASK))] == ["PENDING", "RUNNING", "FAILED"]
    assert {each.state_details.task_run_id for each in run.task_states(str(TASK))} == {TASK}
    assert run.flow_run.state_type == "RUNNING"
    with pytest.raises(KeyError):
        run.task_run(str(uuid4()))


def test_a_state_of_a_task_run_that_was_never_created_is_ignored():
    assert folded(*STARTED, [state("RUNNING", 30, TASK)]).tasks == {}


def note(what: str, at: object, run: object = str(TASK), **more: Any) -> dict[str, Any]:
    return {"k": "note", "run": run, "what": what, "at": at, **more}


def test_a_rollback_is_a_note_listed_with_the_states_but_is_none_of_them():
    """Invariant I5: RolledBack is no transition."""
    run = folded(*STARTED, [task(), state("COMPLETED", 40, TASK)], [note("rolled_back", 50)])
    history = run.tasks[str(TASK)]
    assert [each.name for each in run.task_states(str(TASK))] == ["Completed"]
    listed = run.task_states(str(TASK), rolled_back=True)
    assert [(each.name, each.type, each.at) for each in listed] == [
        ("Completed", "COMPLETED", 40),
        ("RolledBack", "COMPLETED", 50),
    ]
    assert (listed[1].state_details.task_run_id, listed[1].state_details.flow_run_id) == (TASK, RUN)
    assert run.task_run(str(TASK)).state_name == "Completed"
    assert history.rolled_back
    assert history.last is not None
    assert history.last["at"] == 40


def test_a_state_that_a_user_called_rolled_back_is_a_state():
    run = folded(*STARTED, [task(), state("COMPLETED", 40, TASK, name="RolledBack")])
    assert run.task_run(str(TASK)).state_name == "RolledBack"
    assert not run.tasks[str(TASK)].rolled_back


def test_what_was_committed_is_remembered_until_the_call_is_executed_again():
    run = folded(*STARTED, [task(), state("COMPLETED", 40, TASK)])
    assert not run.tasks[str(TASK)].committed
    folded([note("committed", 50)], run=run)
    assert run.tasks[str(TASK)].committed
    assert [each.name for each in run.task_states(str(TASK), rolled_back=True)] == ["Completed"]
    folded([state("RUNNING", 60, TASK)], run=run)
    assert not run.tasks[str(TASK)].committed


def test_what_was_committed_costs_no_memory():
    """Budget: 400 bytes for a finished run."""

    def size() -> int:
        history = run.tasks[str(TASK)]
        return sum(sys.getsizeof(getattr(history, slot)) for slot in history.__slots__)

    run = folded(*STARTED, [task(), state("COMPLETED", 40, TASK)])
    before = size()
    folded([note("committed", 50)], run=run)
    assert run.tasks[str(TASK)].committed
    assert size() - before <= 8


@pytest.mark.parametrize(
    "strange",
    [
        note("of a later version", 50),
        note("committed", 50, run=str(UUID(int=99))),
        note("committed", 50, run=["no id"]),
        note("rolled_back", "no time"),
        {"k": "note"},
    ],
)
def test_a_note_that_says_nothing_to_us_is_ignored(strange):
    run = folded(*STARTED, [task(), state("COMPLETED", 40, TASK)], [strange])
    history = run.tasks[str(TASK)]
    assert (run.position, history.committed, history.rolled_back, len(history.states)) == (4, False, False, 1)


def test_a_claim_of_an_operator_drops_what_was_rolled_back():
    """Its effects were undone because a later call failed; that call is run again, and so must this one be."""
    run = folded(*STARTED, [task(), state("COMPLETED", 40, TASK)], [note("rolled_back", 50)], [state("FAILED", 60)])
    folded([CLAIM], run=run, epoch=2)
    assert run.dropped == set()
    folded([{**CLAIM, "forced": True}], run=run, epoch=3)
    assert run.dropped == {str(TASK)}


def test_a_task_run_keeps_the_number_of_the_flow_attempt_that_it_ran_in():
    run = folded(*STARTED, [task(), state("RUNNING", 30, TASK)], [state("SCHEDULED", 40, name="AwaitingRetry")])
    folded([state("RUNNING", 50)], run=run)
    assert run.flow_run.run_count == 2
    assert run.task_run(str(TASK)).flow_run_run_count == 1
    folded([state("RUNNING", 60, TASK)], run=run)  # the call is executed again
    assert run.task_run(str(TASK)).flow_run_run_count == 2


def test_a_claim_of_an_operator_drops_the_calls_that_failed_and_keeps_the_others():
    kinds = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED", "RUNNING"]
    ids = [uuid4() for _ in [*kinds, "no state"]]
    lines = [[task(run=one)] for one in ids]
    lines += [[state(kind, 30, one)] for one, kind in zip(ids, kinds, strict=False)]
    ended = [[state("FAILED", 40), {"k": "release"}]]
    run = folded(*STARTED, *lines, *ended)
    folded([CLAIM], run=run, epoch=2)
    assert len(run.tasks) == len(ids)
    folded([{**CLAIM, "forced": True}], run=run, epoch=3)
    assert run.dropped == {str(ids[1])}
    assert len(run.tasks) == len(ids), "their states can still be read"
    assert run.epoch == 3
    folded([state("COMPLETED", 50, ids[1])], run=run, epoch=3)
    assert run.dropped == set(), "it was run again, and ended"


# ------------------------------------------------------------------------------------- what readers see


@pytest.mark.parametrize("kind", ["PENDING", "RUNNING", "SCHEDULED"])
def test_a_run_whose_owner_died_never_shows_as_running(kind):
    run = folded([HEADER, CLAIM, state(kind, 10)])
    seen = run.seen(owner_is_alive=False)
    assert seen is not None
    assert (seen.type, seen.at) == (StateType.CRASHED, 11)
    assert "pid 7 on here" in (seen.message or "")
    assert run.flow_run.state_type == kind  # derived, not folded
    assert run.seen(owner_is_alive=True) is run.flow_run.state


def test_a_run_that_was_to_be_cancelled_shows_as_cancelled_when_its_owner_died():
    seen = folded(*STARTED, [state("CANCELLING", 30)]).seen(owner_is_alive=False)
    assert seen is not None
    assert seen.is_cancelled()


@pytest.mark.parametrize("kind", ["COMPLETED", "FAILED", "CANCELLED", "CRASHED"])
def test_a_run_that_has_ended_shows_its_end_whoever_lives(kind):
    run = folded(*STARTED, [state(kind, 30)])
    assert run.seen(owner_is_alive=False) is run.flow_run.state


def test_a_run_that_nobody_owns_shows_as_it_is():
    run = folded([HEADER, state("SCHEDULED", 10, details={"scheduled_time": 10})])
    assert run.seen(owner_is_alive=False) is run.flow_run.state


def test_a_suspended_run_needs_no_process_and_a_paused_one_does():
    suspended = folded(*STARTED, [state("PAUSED", 30, details={"pause_reschedule": True})])
    assert suspended.seen(owner_is_alive=False) is suspended.flow_run.state
    paused = folded(*STARTED, [state("PAUSED", 30)]).seen(owner_is_alive=False)
    assert paused is not None
    assert paused.is_crashed()


def test_a_task_run_that_was_left_running_shows_as_crashed_once_its_flow_run_is_over_or_claimed_again():
    run = folded(*STARTED, [task(), state("RUNNING", 30, TASK)])
    assert run.seen_task(str(TASK), run.flow_run.state).state_type == "RUNNING"
    assert run.seen_task(str(TASK), run.seen(owner_is_alive=False)).state_type == "CRASHED"
    folded([CLAIM], run=run, epoch=2)
    assert run.seen_task(str(TASK), run.flow_run.state).state_type == "CRASHED"
    folded([state("RUNNING", 40, TASK)], run=run, epoch=2)
    assert run.seen_task(str(TASK), run.flow_run.state).state_type == "RUNNING"


def test_a_task_run_that_has_ended_or_never_started_shows_as_it_is():
    done, waiting = uuid4(), uuid4()
    created = [task(run=done), state("FAILED", 30, done), task(run=waiting), state("PENDING", 30, waiting)]
    run = folded(*STARTED, created)
    over = run.seen(owner_is_alive=False)
    assert run.seen_task(str(done), over).state_type == "FAILED"
    assert run.seen_task(str(waiting), over).state_type == "PENDING"


# ------------------------------------------------------------------------------------- parameters, shown forms


def test_parameters_are_rebuilt_or_named_as_missing():
    value = {"when": NOW, "pair": (1, 2)}
    header = {**HEADER, "parameters": keep(value, str(RUN), STORE, "flow")}
    assert folded([header]).parameters() == value
    lost = folded([{**HEADER, "parameters": None, "shown": {"n": "<socket>"}}])
    with pytest.raises(MissingResult, match=r"were not kept.*<socket>"):
        lost.parameters()
    assert lost.flow_run.parameters == {"n": "<socket>"}


def test_the_shown_form_has_no_tags():
    value = {"t": (1, 2), "s": {3}, "d": {1: "x"}, "when": NOW, "id": RUN, "plain": [None, {"a": 1}]}
    form = shown(to_json(value))
    assert (form["t"], form["s"], form["d"], form["plain"]) == ([1, 2], [3], {"1": "x"}, [None, {"a": 1}])
    assert form["id"] == str(RUN)
    assert "$" not in json.dumps(form)


def test_parameters_and_results_that_are_no_json_are_named_and_not_opened():
    assert shown_parameters({"parameters": {"pickle": "…"}, "shown": {"n": 1}}) == {"n": 1}
    assert shown_parameters({"parameters": {"json": [1]}}) == {}
    assert shown_parameters({}) == {}
    assert shown_result(None) is None
    assert shown_result({"json": {"$": "tuple", "v": [1]}}) == [1]
    assert shown_result({"pickle": "…"}) == "<pickle>"
    assert shown_result({"file": "0" * 64, "size": 5, "format": "json"}) == "<json, 5 bytes>"


def test_details_of_a_state_are_those_of_the_record():
    given = StateDetails(pause_key="k", pause_timeout=NOW, pause_reschedule=True)
    record = state_record(State("PAUSED", state_details=given), None, None)
    assert record["details"] == {"pause_key": "k", "pause_timeout": 1763694245678901, "pause_reschedule": True}


@pytest.mark.parametrize("name", [None, "Cached"])
@pytest.mark.parametrize("kind", ["PENDING", "RUNNING", "COMPLETED", "FAILED"])
@pytest.mark.parametrize("rolled_back", [False, True])
def test_a_history_knows_how_its_run_completed_as_readers_see_it(kind, name, rolled_back):
    """Without making the run an object, which costs twenty times as much."""
    states = [state("PENDING", 30, TASK), state(kind, 40, TASK, **({"name": name} if name else {}))]
    note = [[{"k": "note", "run": str(TASK), "what": "rolled_back", "at": 50}]] if rolled_back else []
    run = folded(*STARTED, [task(), *states], *note)
    seen = run.seen_task(str(TASK), run.flow_run.state)
    assert run.tasks[str(TASK)].completed_as == (seen.state_name if seen.state_type == "COMPLETED" else None)
