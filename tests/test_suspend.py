# SPDX-License-Identifier: Apache-2.0
"""Suspending: the process is released, and any process goes on with what was done."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from microflow import flow, pause_flow_run, resume_flow_run, suspend_flow_run
from microflow.client.orchestration import current_client
from microflow.entrypoints import load_entrypoint
from microflow.exceptions import FlowPauseTimeout, NotPausedError, ObjectNotFound, Pause
from microflow.flow_engine import run_flow
from microflow.flow_runs import apause_flow_run, aresume_flow_run, asuspend_flow_run, rerun
from microflow.states import StateType

from .behaviour_support import pins
from .support import Witness, flow_run_ids, flow_states, fold, memory_home, run, task_states

if TYPE_CHECKING:
    from pathlib import Path

executed = Witness()

SCRIPT = """
import asyncio, time
from microflow import flow, task, suspend_flow_run, resume_flow_run
from microflow.task_runners import ThreadPoolTaskRunner
from microflow.flow_runs import aresume_flow_run, asuspend_flow_run
from tests.pause_support import own_run_id
from tests import test_suspend

def saw(what):
    test_suspend.executed.saw(what)

@task
def work(number):
    saw(number)
    return number

@flow
def plain(many: int = 1):
    saw("body")
    first = work(1)
    for number in range(many):
        suspend_flow_run(timeout=None, key=None)
    return first + work(2)

@flow
async def coroutine(many: int = 1):
    saw("body")
    first = work(1)
    for number in range(many):
        await asuspend_flow_run(timeout=None)
    return first + work(2)

@flow
def by_id(how="call", resumed=False):
    work(1)
    suspend_flow_run(flow_run_id=own_run_id())
    if resumed:
        resume_flow_run(own_run_id())
    saw("still here")
    if how == "call":
        work(2)
    elif how == "submit":
        work.submit(2)
    elif how == "map":
        work.map([2, 3])
    elif how == "child":
        child()
    elif how == "error":
        raise ValueError("not recorded")
    elif how == "swallowed":
        try:
            work(2)
        except BaseException:
            pass
    elif how == "timeout":
        time.sleep(0.3)
    return "not recorded"

by_id_in_time = by_id.with_options(timeout_seconds=0.25)

@task
async def awork(number):
    saw(number)
    return number

@flow
async def async_child():
    saw("child")

@flow
async def async_by_id(how="call", resumed=False):
    await awork(1)
    await asuspend_flow_run(flow_run_id=own_run_id())
    if resumed:
        await aresume_flow_run(own_run_id())
    saw("still here")
    if how == "call":
        await awork(2)
    elif how == "submit":
        awork.submit(2)
    elif how == "map":
        awork.map([2, 3])
    elif how == "child":
        await async_child()
    elif how == "error":
        raise ValueError("not recorded")
    elif how == "swallowed":
        try:
            await awork(2)
        except BaseException:
            pass
    elif how == "timeout":
        await asyncio.sleep(20)
    return "not recorded"

async_by_id_in_time = async_by_id.with_options(timeout_seconds=0.25)

@flow
async def async_in_task():
    await async_ask()

@task
async def async_ask():
    await asuspend_flow_run()

@flow
async def async_in_child():
    await async_asking_child()

@flow
async def async_asking_child():
    await asuspend_flow_run()

@flow
def child():
    saw("child")

@flow
def queue(events):
    futures = [wait_for.submit(number) for number in range(4)]
    test_suspend.gate["started"].wait(20)
    suspend_flow_run(flow_run_id=own_run_id(), key="once")
    test_suspend.gate["go"].set()
    return sum(future.result() for future in futures)

@task
def wait_for(number):
    saw(number)
    test_suspend.gate["started"].set()
    test_suspend.gate["go"].wait(20)
    return number

queue = queue.with_options(task_runner=ThreadPoolTaskRunner(max_workers=1))

@flow
def retried():
    saw("body")
    suspend_flow_run(timeout=None, key="ask")
    if test_suspend.executed["failed"] == 0:
        saw("failed")
        raise ValueError("once")
    return "done"

retried = retried.with_options(retries=1)

@flow
def mended():
    saw("body")
    work(1)
    if test_suspend.executed["broken"] == 0:
        saw("broken")
        raise ValueError("not yet")
    return "mended"

@flow
def in_task():
    ask()

@task
def ask():
    suspend_flow_run()

@flow
def in_child():
    asking_child()

@flow
def asking_child():
    suspend_flow_run()

@flow
def unwritable(thing):
    suspend_flow_run()

@flow
def parent(inner=True):
    return staying(own_run_id())

@flow
def staying(parent_id):
    saw("staying")
    suspend_flow_run(flow_run_id=parent_id, key="once")
    return work(5)
"""

gate: dict[str, threading.Event] = {}


@pytest.fixture(autouse=True)
def home_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    memory_home(monkeypatch)
    executed.clear()
    gate.update(started=threading.Event(), go=threading.Event())


@pytest.fixture(name="flows", scope="module")
def flows_fixture(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Flows that another process could import."""
    path: Path = tmp_path_factory.mktemp("scripts") / "suspending.py"
    path.write_text(SCRIPT)
    before = list(sys.path)
    yield lambda name: load_entrypoint(f"{path}:{name}")
    sys.path[:] = before
    sys.modules.pop("suspending", None)


def suspended(main: Any, *args: Any, **kwargs: Any) -> str:
    """Call a flow that suspends itself; gives the run's id."""
    before = set(flow_run_ids())
    with pytest.raises(Pause) as caught:
        run(main(*args, **kwargs))
    assert caught.value.state is not None
    assert caught.value.state.is_left()
    (run_id,) = (each for each in flow_run_ids(main.name) if each not in before)
    return run_id


def go_on(main: Any, run_id: str) -> Any:
    """Resume the run, and execute it again."""
    resume_flow_run(run_id, _sync=True)
    return run(rerun(main, run_id))


@pins("flows", 119)
@pytest.mark.parametrize("name", ["plain", "coroutine"])
def test_a_suspended_run_leaves_its_process_and_goes_on_from_the_log(flows, name):
    main = flows(name)
    run_id = suspended(main)
    assert flow_states(run_id) == ["Pending", "Running", "Suspended"]
    assert fold(run_id).owner is None
    state = go_on(main, run_id)
    assert state.read_result() == 3
    assert flow_states(run_id) == ["Pending", "Running", "Suspended", "Resuming", "Running", "Completed"]
    assert executed == {"body": 2, 1: 1, 2: 1}


def test_several_suspensions_are_passed_one_after_the_other(flows):
    main = flows("plain")
    run_id = suspended(main, 2)
    resume_flow_run(run_id, _sync=True)
    with pytest.raises(Pause):
        rerun(main, run_id)
    assert go_on(main, run_id).read_result() == 3
    assert executed == {"body": 3, 1: 1, 2: 1}
    assert fold(run_id).flow_run.run_count == 1


def test_return_state_does_not_keep_the_suspension_from_the_caller(flows):
    with pytest.raises(Pause):
        flows("plain")(return_state=True)


def test_finally_blocks_run_and_no_hook_does(flows):
    hooks: list[Any] = []
    names = ("on_completion", "on_failure", "on_cancellation", "on_crashed")
    main = flows("plain").with_options(**{name: [lambda *args: hooks.append(args)] for name in names})
    suspended(main)
    assert hooks == []


@pins("flows", 120)
@pytest.mark.parametrize("name", ["by_id", "async_by_id"])
@pytest.mark.parametrize("how", ["call", "submit", "map", "child", "error", "return", "swallowed", "timeout"])
@pytest.mark.parametrize("resumed", [False, True], ids=["", "resumed"])
def test_a_run_that_was_suspended_by_its_id_leaves_at_the_next_boundary(flows, name, how, resumed):
    """Also when somebody has resumed it before it has left."""
    run_id = suspended(flows(f"{name}_in_time" if how == "timeout" else name), how, resumed)
    assert executed == {1: 1, "still here": 1}
    assert flow_states(run_id)[2:] == (["Suspended", "Resuming"] if resumed else ["Suspended"])
    assert fold(run_id).owner is None


def test_what_has_started_ends_and_what_has_not_does_not_start(flows):
    run_id = suspended(flows("queue"), 0)
    assert executed == {0: 1}
    assert [states[-1] for states in task_states("wait_for", run_id)] == ["Completed", "Pending", "Pending", "Pending"]
    assert go_on(flows("queue"), run_id).read_result() == 6
    assert executed == {0: 1, 1: 1, 2: 1, 3: 1}


def test_a_failure_after_the_resumption_is_retried_and_suspends_again(flows):
    main = flows("retried")
    run_id = suspended(main)
    resume_flow_run(run_id, _sync=True)
    with pytest.raises(Pause):
        rerun(main, run_id)
    assert go_on(main, run_id).read_result() == "done"


@pins("flows", 118)
@pytest.mark.parametrize(
    ("name", "words"), [("in_task", "Cannot suspend task runs"), ("in_child", "Cannot suspend subflows")]
)
@pytest.mark.parametrize("colour", ["", "async_"], ids=["sync", "async"])
def test_tasks_and_subflows_cannot_be_suspended(flows, colour, name, words):
    with pytest.raises(RuntimeError, match=words):
        run(flows(colour + name)())


@pins("flows", 118)
def test_a_flow_that_cannot_be_imported_again_is_refused_with_the_reason():
    @flow
    def local() -> None:
        suspend_flow_run()

    with pytest.raises(RuntimeError, match="inside the function test_a_flow_that_cannot"):
        local()
    assert "Suspended" not in flow_states()


def test_a_flow_whose_parameters_cannot_be_rebuilt_is_refused_with_the_reason(flows):
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match="parameters of flow run .* were not kept"):
        flows("unwritable")(threading.Lock())


def test_outside_of_a_flow_there_is_nothing_to_suspend():
    with pytest.raises(RuntimeError, match="can only be suspended from within a flow run"):
        suspend_flow_run(_sync=True)


def test_another_run_can_be_suspended_only_while_it_runs(flows):
    with pytest.raises(ObjectNotFound):
        suspend_flow_run(flow_run_id="01a1fc5b-c97b-7c32-bcb6-906012357f80", _sync=True)
    run_id = suspended(flows("plain"))
    suspend_flow_run(flow_run_id=run_id, _sync=True)  # it is already
    assert flow_states(run_id).count("Suspended") == 1
    go_on(flows("plain"), run_id)
    with pytest.raises(RuntimeError, match="cannot be suspended"):
        suspend_flow_run(flow_run_id=run_id, _sync=True)


@pins("flows", 121)
def test_a_run_that_is_suspended_and_not_resumed_does_not_start(flows):
    main = flows("plain")
    run_id = suspended(main)
    executed.clear()
    with pytest.raises(Pause):
        run_flow(main, current_client().read_flow_run(run_id))
    assert not executed
    assert flow_states(run_id)[-1] == "Suspended"


def test_suspending_a_parent_stops_its_child_which_is_gone_on_with(flows):
    """The child's log has no end; the parent that is executed again takes it over."""
    main = flows("parent")
    run_id = suspended(main)
    (child_id,) = flow_run_ids("staying")
    assert executed == {"staying": 1}
    assert current_client().read_flow_run(child_id).state_type is StateType.CRASHED  # nobody runs it
    assert go_on(main, run_id).read_result() == 5
    assert executed == {"staying": 2, 5: 1}
    assert flow_run_ids("staying") == [child_id]


@pins("flows", 127)
def test_a_suspension_that_nobody_resumed_in_time_fails_the_run():
    client = current_client()

    @flow
    def main() -> None:
        pass

    from microflow.states import Running, Suspended

    live = client.start(client.new_flow_run(main), main, {}, Running(), own=True)
    live.propose(Suspended(timeout_seconds=-1, pause_key="late"))
    client.let_go(live)
    assert client.read_flow_run(live.run_id).state_type is StateType.FAILED  # seen so before anybody recorded it
    with pytest.raises(FlowPauseTimeout, match="can no longer be resumed"):
        resume_flow_run(live.run_id, _sync=True)
    assert flow_states(live.run_id)[-1] == "Failed"
    with pytest.raises(NotPausedError):
        resume_flow_run(live.run_id, _sync=True)


def test_a_second_resume_of_a_suspended_run_is_refused(flows):
    run_id = suspended(flows("plain"))
    resume_flow_run(run_id, _sync=True)
    with pytest.raises(NotPausedError):
        resume_flow_run(run_id, _sync=True)
    assert current_client().read_flow_run(run_id).state_name == "Resuming"


def test_a_run_that_could_not_be_run_again_is_not_resumed():
    client = current_client()

    @flow
    def local() -> None:
        pass

    from microflow.states import Running, Suspended

    live = client.start(client.new_flow_run(local), local, {}, Running(), own=True)
    live.propose(Suspended(pause_key="1"))
    client.let_go(live)
    with pytest.raises(RuntimeError, match="Cannot resume this run"):
        resume_flow_run(live.run_id, _sync=True)
    assert flow_states(live.run_id)[-1] == "Suspended"


@pytest.mark.parametrize("name", ["plain", "coroutine"])
def test_a_resume_may_run_the_run_here_too(flows, name):
    run_id = suspended(flows(name))
    assert resume_flow_run(run_id, run=True, _sync=True).read_result() == 3
    assert executed == {"body": 2, 1: 1, 2: 1}


@pytest.mark.parametrize("name", ["plain", "coroutine"])
def test_the_coroutine_form_of_a_resume_may_run_the_run_too(flows, name):
    run_id = suspended(flows(name))
    assert run(aresume_flow_run(run_id, run=True)).read_result() == 3


def test_an_ended_run_is_started_again_by_force_only(flows):
    main = flows("mended")
    assert main(return_state=True).is_failed()
    (run_id,) = flow_run_ids("mended")
    with pytest.raises(NotPausedError):
        resume_flow_run(run_id, run=True, _sync=True)
    assert resume_flow_run(run_id, force=True, _sync=True).read_result() == "mended"
    assert executed == {"body": 2, 1: 1, "broken": 1}
    with pytest.raises(NotPausedError):  # a completed run is never started again
        resume_flow_run(run_id, force=True, _sync=True)


def test_the_forms_have_the_references_other_name():
    assert (pause_flow_run.aio, suspend_flow_run.aio) == (apause_flow_run, asuspend_flow_run)
    assert resume_flow_run.aio is aresume_flow_run


def test_the_coroutine_form_suspends_another_run_too(flows):
    async def main() -> None:
        await asuspend_flow_run(flow_run_id="01a1fc5b-c97b-7c32-bcb6-906012357f80")

    with pytest.raises(ObjectNotFound):
        run(main())
