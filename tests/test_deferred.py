# SPDX-License-Identifier: Apache-2.0
"""Runs that are recorded for a worker: ``delay``, ``apply_async``, deferred ``map``, ``create_run``."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import threading
from uuid import uuid4

import pytest

from microflow import allow_failure, cli, flow, get_client, quote, tags, task
from microflow.calls import Call
from microflow.client.orchestration import current_client
from microflow.context import FlowRunContext, TaskRunContext
from microflow.exceptions import (
    CancelledRun,
    MissingResult,
    NotPausedError,
    ObjectNotFound,
    ParameterBindError,
    RunningElsewhere,
    SerializationError,
)
from microflow.flow_runs import rerun
from microflow.futures import ConcurrentFuture, DistributedFuture, FutureList, PrefectDistributedFuture
from microflow.states import Cancelled, StateType
from microflow.task_engine import run_call, run_task
from tests.behaviour_support import pins
from tests.support import Colour, both, flow_run_ids, fold, memory_home, run


@pytest.fixture(params=["file", "memory"], autouse=True)
def home(request, monkeypatch, tmp_path):
    """Both kinds of store: what is recorded is the same."""
    if request.param == "file":
        monkeypatch.setenv("MICROFLOW_HOME", str(tmp_path / "home"))
    else:
        memory_home(monkeypatch)
    return request.param


@dataclasses.dataclass
class Point:
    x: int


@task(tags=["own"], version="3", retries=2)
def add(x, y=1, *more, **named):
    """Add."""
    return x + y


@task
async def add_async(x, y=1):
    return x + y


@task
def fail(message="no"):
    raise ValueError(message)


class Box:
    def __init__(self, value):
        self.value = value

    @task
    def plus(self, x):
        return self.value + x


def work(made, future):
    """What a worker does with one entry of the queue."""
    client, run_id = current_client(), str(future.task_run_id)
    live = client.claim(run_id)
    given = client.read_task_run_parameters(run_id)
    call = Call(live.run.task_run(run_id), live, None)
    outcome = run_call(call, made, given.get("parameters", {}), given.get("wait_for"), threading.Event())
    state = run(outcome) if made.isasync else outcome
    client.let_go(live)
    client.store.queue.take(run_id)
    return state


def queue():
    return current_client().store.queue.list()


# ------------------------------------------------------------------------------------------- what is recorded


@pins("futures_runners", 90)
def test_a_delayed_call_is_recorded_scheduled_and_stands_in_the_queue():
    with tags("outer"):
        future = add.delay(1, y=2)
    assert isinstance(future, DistributedFuture)
    assert PrefectDistributedFuture is DistributedFuture
    client = current_client()
    recorded = client.read_task_run(future.task_run_id)
    state = recorded.state
    assert (state.type, state.name, future.state.name) == (StateType.SCHEDULED, "Scheduled", "Scheduled")
    details = state.state_details
    assert (details.deferred, details.task_run_id, details.flow_run_id) == (True, recorded.id, None)
    assert details.task_parameters_id is not None
    assert (recorded.name, recorded.task_key, recorded.task_version) == ("add", add.task_key, "3")
    assert (recorded.tags, recorded.empirical_policy["retries"]) == ({"own", "outer"}, 2)
    assert recorded.flow_run_id is None
    assert client.read_task_run_parameters(recorded.id) == {
        "parameters": {"x": 1, "y": 2, "more": (), "named": {}},
        "context": {"tags": ["outer"]},
    }
    assert [state.name for state in client.read_task_run_states(recorded.id)] == ["Scheduled"]
    assert queue() == [str(recorded.id)]


@both
def test_a_call_is_deferred_alike_whatever_the_colour_and_wherever_it_is_made(colour: Colour):
    inner = colour.task(lambda x: x, name="inner")

    @colour.flow
    def body():
        return quote([inner.delay(1), inner.apply_async(args=[2]), inner.apply_async(kwargs={"x": 3})])

    for future in [*colour.run(body).unwrap(), inner.delay(4)]:
        state = current_client().read_task_run(future.task_run_id).state
        assert state is not None
        assert state.state_details.deferred
    assert len(queue()) == 4


@pins("futures_runners", 90)
def test_nothing_is_carried_for_a_call_without_arguments():
    future = task(lambda: 1).delay()
    details = current_client().read_task_run(future.task_run_id).state.state_details
    assert details.task_parameters_id is None
    assert current_client().read_task_run_parameters(future.task_run_id) == {}


@pins("futures_runners", 90)
def test_wait_for_is_carried_and_counts_among_the_inputs():
    first = add.delay(1)
    second = task(lambda: 1).apply_async(wait_for=[first])
    recorded = current_client().read_task_run(second.task_run_id)
    assert [item.id for item in recorded.task_inputs["wait_for"]] == [first.task_run_id]
    assert current_client().read_task_run_parameters(second.task_run_id) == {"wait_for": [first]}


def test_futures_of_deferred_runs_and_annotations_are_carried():
    first = add.delay(1)
    second = add.delay([first, Point(2)], allow_failure(first))
    given = current_client().read_task_run_parameters(second.task_run_id)["parameters"]
    assert given["x"] == [first, Point(2)]
    assert given["y"] == allow_failure(first)
    recorded = current_client().read_task_run(second.task_run_id)
    assert {name: [item.id for item in items] for name, items in recorded.task_inputs.items()} == {
        "x": [first.task_run_id], "y": [first.task_run_id], "more": [], "named": [],
    }  # fmt: skip


@pins("futures_runners", 92)
def test_in_a_flow_the_run_names_the_flow_run_and_the_task_run_that_made_it():
    @task
    def outer():
        context = TaskRunContext.get()
        return [context.task_run.flow_run_id, context.task_run.id, add.delay(1).task_run_id]

    flow_run_id, task_run_id, run_id = flow(lambda: outer())()
    recorded = current_client().read_task_run(run_id)
    assert recorded.flow_run_id == recorded.state.state_details.flow_run_id == flow_run_id
    assert [item.id for item in recorded.task_inputs["__parents__"]] == [task_run_id]
    context = current_client().read_task_run_parameters(run_id)["context"]
    assert context == {"flow_run_id": str(flow_run_id), "task_run_id": str(task_run_id)}


def test_large_arguments_and_those_that_json_cannot_carry_come_back():
    class_of_ours, large = {Box: 1}, "x" * 100_000
    future = add.delay(large, class_of_ours)
    given = current_client().read_task_run_parameters(future.task_run_id)["parameters"]
    assert (given["x"], given["y"]) == (large, class_of_ours)


@pins("task_engine", 32)
@pytest.mark.parametrize("args", [(), (1, 2, 3, 4)], ids=["missing", "too-many"])
def test_arguments_that_do_not_fit_are_refused_before_anything_is_recorded(args):
    with pytest.raises(ParameterBindError):
        add_async.delay(*args)
    with pytest.raises(ParameterBindError, match="wait_for"):
        add_async.delay(1, wait_for=[])
    assert queue() == current_client().store.list() == []


def test_an_argument_that_cannot_be_carried_is_named_and_nothing_is_recorded():
    with pytest.raises(SerializationError, match="argument 'y' of a deferred run of task 'add'.*plain values"):
        add.delay("x" * 100_000, threading.Lock())
    assert queue() == current_client().store.list() == []

    @flow
    def body():
        future = add.submit(1)
        assert isinstance(future, ConcurrentFuture)
        with pytest.raises(SerializationError, match="argument 'x'.*futures of runs that are deferred"):
            add.delay(future)
        with pytest.raises(SerializationError, match="wait_for of a deferred run"):
            add.apply_async([1], wait_for=[future])

    body()
    assert queue() == []


def test_deferred_runs_are_no_flow_runs():
    future = add.delay(1)
    client = current_client()
    assert client.read_flow_runs() == []
    with pytest.raises(ObjectNotFound, match="deferred task run"):
        client.read_flow_run(future.task_run_id)
    flow(lambda: 1)()
    with pytest.raises(ObjectNotFound, match="not a deferred task run"):
        client.read_task_run_parameters(client.read_flow_runs()[0].id)
    with pytest.raises(ObjectNotFound):
        client.read_task_run(uuid4())


def test_the_async_client_reads_what_was_recorded():
    future = add.delay(1)

    async def body():
        async with get_client() as client:
            given = await client.read_task_run_parameters(future.task_run_id)
            return given["parameters"]["x"], (await client.read_task_run(future.task_run_id)).state_name

    assert run(body()) == (1, "Scheduled")


# ----------------------------------------------------------------------------------------------- running them


@pytest.mark.parametrize("made", [add, add_async], ids=["sync", "async"])
def test_a_worker_finds_in_the_record_all_that_it_needs(made):
    future = made.delay(2, y=3)
    assert work(made, future).name == "Completed"
    assert (future.result(timeout=0), future.state.is_completed()) == (5, True)
    names = [state.name for state in current_client().read_task_run_states(future.task_run_id)]
    assert names == ["Scheduled", "Running", "Completed"]
    assert queue() == []
    with pytest.raises(NotPausedError):
        current_client().claim(str(future.task_run_id))


def test_a_method_carries_its_object():
    future = Box(10).plus.delay(5)
    assert set(current_client().read_task_run_parameters(future.task_run_id)["parameters"]) == {"self", "x"}
    work(Box.plus, future)
    assert future.result(timeout=0) == 15


def test_a_failure_is_raised_by_the_future():
    future = fail.delay("broken")
    work(fail, future)
    with pytest.raises(ValueError, match="broken"):
        future.result(timeout=0)
    assert str(future.result(timeout=0, raise_on_failure=False)) == "broken"


def test_who_waits_is_told():
    future, seen = add.delay(1), []
    with pytest.raises(TimeoutError, match=str(future.task_run_id)):
        future.result(timeout=0)
    future.add_done_callback(seen.append)
    worker = threading.Thread(target=work, args=(add, future))
    worker.start()
    assert DistributedFuture(future.task_run_id).result() == 2
    worker.join()
    assert seen == [future]


def test_one_worker_runs_it():
    future = add.delay(1)
    live = current_client().claim(str(future.task_run_id))
    with pytest.raises(RunningElsewhere):
        current_client().claim(str(future.task_run_id))
    assert current_client().read_task_run(future.task_run_id).state.is_scheduled()
    current_client().let_go(live)
    work(add, future)


def test_a_run_whose_worker_was_killed_is_seen_as_crashed_and_can_be_claimed(monkeypatch, tmp_path):
    monkeypatch.setenv("MICROFLOW_HOME", str(tmp_path / "shared"))  # with a process that is killed
    future = add.delay(1)
    program = f"""
import os, signal
from microflow.client.orchestration import current_client
from microflow.states import Running
live = current_client().claim("{future.task_run_id}")
live.propose_task(live.run.task_run("{future.task_run_id}"), Running())
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    assert current_client().read_task_run(future.task_run_id).state.is_crashed()
    assert queue() == [str(future.task_run_id)]
    work(add, future)
    assert future.result(timeout=0) == 2


def test_the_log_names_the_task_and_where_its_code_is():
    future = add.delay(1)
    header = current_client().fold(str(future.task_run_id)).header
    assert header["task"] == add.task_key
    assert header["entrypoint"].endswith("test_deferred:add")
    assert json.loads(json.dumps(header["arguments"]["x"])) == {"json": 1}
    assert "flow" not in header


def test_a_run_that_waits_can_be_cancelled_and_one_that_has_ended_cannot():
    future = add.delay(1)
    answer = current_client().set_task_run_state(future.task_run_id, Cancelled(message="not needed"))
    assert answer.accepted
    assert queue() == []
    with pytest.raises(CancelledRun, match="not needed"):
        future.result(timeout=0)
    with pytest.raises(NotPausedError):
        current_client().claim(str(future.task_run_id))

    async def again():
        async with get_client() as client:
            return await client.set_task_run_state(future.task_run_id, Cancelled())

    assert not run(again()).accepted
    flow(lambda: 1, name="main")()
    with pytest.raises(ObjectNotFound, match="not a deferred task run"):
        current_client().set_task_run_state(flow_run_ids("main")[0], Cancelled())


def test_the_command_line_calls_it_a_task_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MICROFLOW_HOME", str(tmp_path / "listed"))
    future = add.delay(5)
    assert cli.main(["show", str(future.task_run_id)]) == 0
    shown = capsys.readouterr().out
    assert f"task run    add ({future.task_run_id})" in shown
    assert '"x": 5' in shown
    assert cli.main(["ls"]) == 0
    assert "Scheduled" in capsys.readouterr().out


def test_a_deleted_run_leaves_the_queue():
    future = add.delay(1)
    current_client().delete_flow_run(future.task_run_id)
    assert queue() == current_client().store.list() == []


def test_a_flow_that_is_run_again_does_not_defer_a_call_twice():
    @flow
    def body():
        futures = [add.delay(1), add.delay(1), add.delay(2)]
        if not os.environ.get("MICROFLOW_TEST_AGAIN"):
            raise ValueError
        return [future.task_run_id for future in futures]

    assert body(return_state=True).is_failed()
    first = queue()
    assert len(set(first)) == 3
    (again_of,) = [run_id for run_id in flow_run_ids() if run_id not in first]
    current_client().store.queue.take(first[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MICROFLOW_TEST_AGAIN", "1")
        again = rerun(body, again_of, force=True).result()
    assert [str(each) for each in again] == first
    assert set(queue()) == set(first)


# ---------------------------------------------------------------------------------------------------- map


@pins("task_engine", 72)
def test_a_deferred_map_gives_a_list_of_futures_of_deferred_runs_anywhere():
    def check(futures):
        assert isinstance(futures, FutureList)
        given = [current_client().read_task_run_parameters(each.task_run_id)["parameters"] for each in futures]
        assert [(each["x"], each["y"], each["named"]) for each in given] == [
            (1, allow_failure(5), {"z": 3}),
            (2, allow_failure(5), {"z": 4}),
        ]

    check(add.map([1, 2], allow_failure(5), z=[3, 4], deferred=True))
    flow(lambda: check(add.map([1, 2], allow_failure(5), z=[3, 4], deferred=True)))()
    with pytest.raises(RuntimeError, match="while a flow or a deferred task runs"):
        add.map([1, 2])


@pins("futures_runners", 92)
def test_defaults_are_not_mapped_and_wait_for_goes_to_every_run():
    upstream = add.delay(1)
    mapped = task(lambda x, y=(1, 2, 3): x)
    futures = mapped.map([1, 2], wait_for=iter([upstream]), deferred=True)
    for future in futures:
        given = current_client().read_task_run_parameters(future.task_run_id)
        assert (given["parameters"]["y"], given["wait_for"]) == ((1, 2, 3), [upstream])


# ------------------------------------------------------------------------------------------------- create_run


@pytest.mark.parametrize("deferred", [False, True])
def test_a_created_run_is_recorded_and_can_be_run(deferred):
    run_id = uuid4()
    made = run(add.create_run(id=run_id, parameters={"x": 1, "y": 2}, deferred=deferred))
    assert (made.id, made.state.name) == (run_id, "Scheduled" if deferred else "Pending")
    assert current_client().read_task_run(run_id).state_name == made.state_name
    assert queue() == ([str(run_id)] if deferred else [])
    if not deferred:
        assert run_task(add, task_run=made, parameters={"x": 1, "y": 2}) == 3
        assert current_client().read_task_run(run_id).state_name == "Completed"


def test_a_run_that_is_created_in_a_flow_belongs_to_it():
    @flow
    async def body():
        made = await add.create_run(parameters={"x": 1, "y": 2}, extra_task_inputs={"x": set()})
        return made.flow_run_id, made.text

    flow_run_id, task_run_id = run(body())
    assert str(flow_run_id) == flow_run_ids()[0]
    assert [record["type"] for record in fold().tasks[task_run_id].states] == ["PENDING"]


@pytest.mark.parametrize("deferred", [False, True])
def test_a_local_run_is_recorded_nowhere_until_it_is_run(deferred):
    made = run(add.create_local_run(parameters={"x": 1}, deferred=deferred))
    assert made.state.type is (StateType.SCHEDULED if deferred else StateType.PENDING)
    assert made.state.state_details.deferred is (True if deferred else None)
    assert (made.state.state_details.task_run_id, made.name) == (made.id, "add")
    with pytest.raises(ObjectNotFound):
        current_client().read_task_run(made.id)
    assert queue() == []


def test_contexts_may_be_given_instead_of_the_current_ones():
    @task
    def outer():
        return quote((FlowRunContext.get(), TaskRunContext.get()))

    @flow
    def body():
        flow_context, task_context = outer().unwrap()
        made = run(
            add.create_local_run(flow_run_context=flow_context, parent_task_run_context=task_context)
        )
        return made.flow_run_id == flow_context.flow_run.id, [item.id for item in made.task_inputs["__parents__"]] == [
            task_context.task_run.id
        ]

    assert body() == (True, True)


# -------------------------------------------------------------------------------------------------- futures


def test_futures_of_one_run_are_equal_and_can_be_pickled():
    run_id = uuid4()
    one, other = DistributedFuture(run_id), DistributedFuture(run_id)
    assert one == other
    assert hash(one) == hash(other)
    assert one != DistributedFuture(uuid4())
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(ObjectNotFound):
        one.wait()


def test_a_result_that_was_not_kept_is_missing(monkeypatch):
    monkeypatch.setenv("MICROFLOW_KEEP_RESULTS", "false")
    future = add.delay(1)
    work(add, future)
    with pytest.raises(MissingResult):
        DistributedFuture(future.task_run_id).result()
