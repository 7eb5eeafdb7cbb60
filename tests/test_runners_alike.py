# SPDX-License-Identifier: Apache-2.0
"""One task gives one answer, wherever it runs: each fact here holds on every runner and every executor."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

import pytest

from microflow import flow, tags
from microflow._arguments import allow_failure, opaque, quote
from microflow.cache_policies import INPUTS
from microflow.client.orchestration import current_client
from microflow.exceptions import CrashedRun
from microflow.futures import wait
from microflow.settings import temporary_settings
from microflow.states import Completed
from microflow.task_runners import Cancellation
from microflow.transactions import get_transaction
from tests import remote_tasks as remote
from tests.behaviour_support import pins
from tests.executors_support import KINDS, Kind, each
from tests.kill_support import wait_until
from tests.support import fold, task_ids, task_states


@pytest.fixture
def run(request):
    """Run a body as a flow on a runner of some kind."""

    def run(kind: Kind, body: Any, max_workers: int = 2) -> Any:
        return flow(task_runner=kind.runner(request, max_workers), name="outer")(body)()

    return run


@each(KINDS)
@pins("futures_runners", 64, 66)
def test_values_and_maps(runner_kind, run):
    def body():
        point, plain = remote.shift.submit(remote.Point(1, 2), remote.Plain([3])).result()
        assert (point, plain.value) == (remote.Point(2, 3), [3])
        assert remote.add.map([1, 2, 3], [4, 5, 6]).result() == [5, 7, 9]
        assert remote.add_async.submit(remote.add.submit(1), y=5).result() == 7
        return os.getpid() != remote.pid.submit().result()

    assert run(runner_kind, body) is runner_kind.isolated


@each(KINDS)
@pins("futures_runners", 65, 108)
def test_tags_settings_and_the_run_are_those_of_the_submit(runner_kind, run):
    def body():
        with tags("a", "b"), temporary_settings(default_task_retries=0):
            first = remote.seen_here.submit()
        with tags("c"):
            second = remote.seen_here_async.submit()
        with tags("d"):
            mapped = remote.tags_of.map([1, 2])
        assert mapped.result() == [(1, ["d"]), (2, ["d"])]
        return first.result(), second.result()

    first, second = run(runner_kind, body)
    assert (first["tags"], second["tags"]) == (["a", "b"], ["c"])
    assert first["flow_run"] == fold().flow_run.id
    assert {str(first["task_run"]), str(second["task_run"])} == {
        *task_ids("seen_here"),
        *task_ids("seen_here_async"),
    }


@each(KINDS)
@pins("futures_runners", 75)
def test_exceptions(runner_kind, run):
    def body():
        plain = remote.fail.submit("one").result(raise_on_failure=False)
        bad = remote.raise_bad_init.submit().result(raise_on_failure=False)
        held = remote.raise_holding_a_lock.submit().result(raise_on_failure=False)
        own = remote.raise_cancelled.submit().result(raise_on_failure=False)
        assert remote.add.submit(1).result() == 2, "the pool is as it was"
        return plain, bad, held, own

    plain, bad, held, own = run(runner_kind, body)
    assert (type(plain), str(plain)) == (ValueError, "one")
    assert (type(bad), str(bad), bad.code) == (remote.BadInit, "bad (7)", 7)
    assert "held" in str(held)
    assert type(own).__name__ == "CancelledError"
    for name in ("fail", "raise_bad_init", "raise_holding_a_lock", "raise_cancelled"):
        assert task_states(name) == [["Pending", "Running", "Failed"]]


@each(KINDS)
def test_retries(runner_kind, run, tmp_path):
    again, marks = remote.fail_until.with_options(retries=2), tmp_path / "marks"
    marks.mkdir()
    assert run(runner_kind, lambda: again.submit(str(marks), 3).result()) == 3
    assert task_states("fail_until") == [["Pending", "Running", "Retrying", "Retrying", "Completed"]]
    assert task_states("add") == [["Pending", "Running", "Completed"]] * 3, "nothing was undone: none of it can be"


@each(KINDS)
@pytest.mark.parametrize("ending", ["raises", "returns", "succeeds"])
def test_what_a_task_calls_is_committed_or_rolled_back_with_it(runner_kind, ending, run, tmp_path):
    """Without a transaction that was opened by hand, only the runs that have hooks or a key are noted."""
    marks = tmp_path / "marks"
    marks.mkdir()
    run(runner_kind, lambda: remote.effects.submit(str(marks), ending).wait())
    said = sorted(path.name for path in marks.iterdir())
    if ending == "succeeds":
        assert said == ["committed 1", "committed 2"]
        assert task_states("_effect") == [["Pending", "Running", "Completed"]] * 2
    else:
        assert said == ["rolled back 1", "rolled back 2"]
        assert task_states("_effect") == [["Pending", "Running", "Completed", "RolledBack"]] * 2
    assert task_states("add") == [["Pending", "Running", "Completed"]]


@each(KINDS)
def test_timeouts(runner_kind, run):
    def body():
        future = remote.slow_for_a_second.submit()
        with pytest.raises(TimeoutError, match="timed out after 0.2 second"):
            future.result()
        return future.state.name, future.state.type.value

    assert run(runner_kind, body) == ("TimedOut", "FAILED")
    assert task_states("slow_for_a_second") == [["Pending", "Running", "TimedOut"]]


@each(KINDS)
@pins("futures_runners", 104)
def test_sys_exit_crashes_its_run_only(runner_kind, run):
    def body():
        future = remote.exit_by_sys.submit()
        with pytest.raises(CrashedRun):
            future.result()
        assert remote.add.submit(1).result() == 2
        return future.state.message

    assert run(runner_kind, body) == "Execution was aborted by a system exit call."
    assert task_states("exit_by_sys") == [["Pending", "Running", "Crashed"]]


@each([kind for kind in KINDS if kind.isolated and kind.name != "dask"])
@pins("futures_runners", 104)
def test_a_worker_that_dies_crashes_its_run_and_is_replaced(runner_kind, run):
    def body():
        future = remote.exit_by_os.submit()
        with pytest.raises(CrashedRun):
            future.result()
        return remote.add.submit(1).result()

    assert run(runner_kind, body) == 2
    assert task_states("exit_by_os") == [["Pending", "Running", "Crashed"]]


@each(KINDS)
@pins("futures_runners", 111)
def test_states_of_dependents(runner_kind, run):
    def body():
        failed = remote.fail.submit()
        by_parameter, by_wait = remote.add.submit(failed), remote.add.submit(1, wait_for=[failed])
        wait([by_parameter, by_wait])
        return (
            [by_parameter.state.name, by_wait.state.name],
            remote.add.submit(1, wait_for=[allow_failure(failed)]).result(),
            remote.add.submit(1, wait_for=[Completed(data=1), "plain", 5]).result(),
            remote.spread.submit(quote([1, {2}]), opaque((3,)), a=remote.add.submit(3), b=Completed(data=4)).result(),
        )

    assert run(runner_kind, body) == (
        ["NotReady", "NotReady"],
        2,
        2,
        (([1, {2}], (3,)), {"a": 4, "b": 4}),
    )
    assert task_states("spread") == [["Pending", "Running", "Completed"]]


@each(KINDS)
def test_calls_of_a_task_are_recorded_under_the_same_ids(runner_kind, run):
    def body():
        return remote.parent_of.submit(1).result()

    assert run(runner_kind, body) == [4, 11]
    ids = set(task_ids("add"))
    assert task_states("add") == [["Pending", "Running", "Completed"]] * 4
    client = current_client()
    (run_id,) = client.store.list()
    parent = task_ids("parent_of")[0]
    inputs = [fold(run_id).tasks[each].created["inputs"]["__parents__"] for each in ids]
    assert inputs == [[["task_run", parent]]] * 4


@each(KINDS)
@pins("futures_runners", 105)
def test_a_parent_that_waits_for_its_children_ends_with_one_worker(runner_kind, run):
    assert run(runner_kind, lambda: remote.wait_for_child.submit(1).result(), 1) == 5


@each(KINDS)
def test_equal_calls_are_made_twice_and_no_keyword_is_swallowed(runner_kind, run):
    words = {"key": "k", "workers": ["nowhere"], "resources": {"GPU": 1}, "retries": 3, "priority": 1, "pure": True}

    def body():
        assert remote.taken.submit(**words).result() == words
        return remote.token.submit().result() != remote.token.submit().result()

    assert run(runner_kind, body)


@each(KINDS)
def test_what_a_task_logs_is_logged_once_here(runner_kind, run, caplog):
    with caplog.at_level(logging.INFO, logger="microflow"):
        run(runner_kind, lambda: remote.log_lines.submit("one", "two").result())
    assert [record.getMessage() for record in caplog.records if hasattr(record, "own")] == [
        "one from here",
        "two from here",
    ]


@each(KINDS)
def test_callbacks_run_in_a_thread_of_ours(runner_kind, run):
    called: list[str] = []
    done = threading.Event()

    def note(_):
        called.append(threading.current_thread().name)
        done.set()

    def body():
        future = remote.sleep.submit(0.1)
        future.add_done_callback(note)
        future.result()
        assert done.wait(20)

    run(runner_kind, body)
    assert [name.startswith("microflow-") for name in called] == [True]


@each(KINDS)
def test_cancellation_answers_say_what_is_known(runner_kind, run, tmp_path):
    started, go = tmp_path / "started", tmp_path / "go"

    def body():
        runner = flow_runner()
        running = remote.touch_and_wait.submit(str(started), str(go))
        waiting = remote.add.submit(1)
        assert wait_until(started.exists)
        assert runner.cancel(waiting) is Cancellation.NOT_STARTED
        assert waiting.state.name == "Cancelled"
        answer = runner.cancel(running)
        go.touch()
        running.wait()
        assert runner.cancel(running) is Cancellation.DONE
        return answer, running.state.name

    expected = (Cancellation.KILLED, "Cancelled") if runner_kind.kills else (Cancellation.UNSTOPPABLE, "Completed")
    assert run(runner_kind, body, 1) == expected
    assert task_states("add") == [["Pending", "Cancelled"]]
    assert task_states("touch_and_wait")[0] == ["Pending", "Running", expected[1]]


def flow_runner() -> Any:
    from microflow.context import FlowRunContext

    context = FlowRunContext.get()
    assert context is not None
    return context.task_runner


@each(KINDS)
def test_a_stored_result_is_found_without_a_worker(runner_kind, run, tmp_path):
    cached = remote.counted.with_options(cache_policy=INPUTS, persist_result=True)
    marks = tmp_path / "marks"
    marks.mkdir()

    def body():
        first = cached.submit(str(marks), 1)
        first.wait()
        second = cached.submit(str(marks), 1)
        second.wait()
        return first.state.name, second.state.name, second.result()

    assert run(runner_kind, body) == ("Completed", "Cached", 1)
    assert len(list(marks.iterdir())) == 1


@each(KINDS)
def test_hooks_of_states_and_transactions_run_in_the_owner(runner_kind, run):
    seen: list[str] = []
    hooked = remote.add.with_options(
        on_completion=[lambda task, run, state: seen.append(state.name)],
        on_running=[lambda task, run, state: seen.append(state.name)],
        on_commit=[lambda transaction: seen.append("commit")],
    )
    assert run(runner_kind, lambda: hooked.submit(1).result()) == 2
    assert sorted(seen) == ["Completed", "Running", "commit"]


@each(KINDS)
def test_what_a_failed_attempt_did_is_rolled_back_where_it_was_done(runner_kind, run, tmp_path):
    assert get_transaction() is None, "and the module is loaded: the program has transactions"

    def body():
        remote.parent_that_fails_with_hooks.submit(str(tmp_path)).wait()
        remote.parent_that_fails_with_hooks.submit(str(tmp_path), fails=False).wait()

    run(runner_kind, body)
    assert (tmp_path / "hooks").read_text().split() == ["rollback", "commit"]


@each(KINDS)
def test_a_submitted_generator_gives_the_list_of_its_items(runner_kind, run):
    def body():
        return remote.generated.submit(3).result(), remote.generated_async.submit(3).result()

    assert run(runner_kind, body) == ([0, 1, 2], [0, 1, 2])
    assert task_states("generated") == [["Pending", "Running", "Completed"]]


@each(KINDS)
@pytest.mark.parametrize("fails", [False, True])
def test_metadata_that_a_task_adds_to_its_asset_is_noted_with_it(runner_kind, fails, run):
    run(runner_kind, lambda: remote.make_asset.submit(fails).wait())
    (flow_run,) = current_client().read_flow_runs()
    (event,) = current_client().read_asset_events(flow_run_id=flow_run.id)
    assert event.event == f"asset.materialization.{'failed' if fails else 'succeeded'}"
    assert event.metadata["rows"] == 3
    assert "1" in str(event.metadata["shape"])
