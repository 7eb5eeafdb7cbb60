# SPDX-License-Identifier: Apache-2.0
"""ProcessPoolTaskRunner: what crosses to its workers, what is refused, and what a worker's death costs."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from microflow import flow, get_client, tags, task
from microflow._arguments import allow_failure, quote
from microflow._dispatch import MessageProcessors
from microflow.client.orchestration import current_client
from microflow.exceptions import CrashedRun, MicroflowException, NotTransferable, SerializationError
from microflow.futures import ConcurrentFuture, wait
from microflow.settings import temporary_settings
from microflow.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner
from tests import remote_tasks as remote
from tests.behaviour_support import pins
from tests.kill_support import environment, wait_until
from tests.support import fold, task_ids, task_states


def processes(number: int = 1, **options: Any) -> ProcessPoolTaskRunner:
    return ProcessPoolTaskRunner(number, **options)


def in_flow(body, runner=None, **options):
    """Run `body` as a flow on processes."""
    return flow(task_runner=runner or processes(), name="outer", **options)(body)()


# ------------------------------------------------------------------------------------------------ configuration


class TestConfiguration:
    @pins("futures_runners", 61, 80)
    def test_equal_iff_the_worker_count_is(self):
        runner = processes(3, initializer=remote.initialize, initargs=(1,), max_tasks_per_child=5)
        twin = runner.duplicate()
        assert twin == runner == processes(3)
        assert twin is not runner
        assert hash(twin) == hash(runner)
        assert runner != processes(2)
        assert runner != ThreadPoolTaskRunner(3)
        assert runner != 3
        assert runner.name == "processpool"
        assert repr(runner) == "ProcessPoolTaskRunner(max_workers=3)"

    def test_a_duplicate_keeps_everything_also_of_a_subclass_with_another_init(self):
        class Own(ProcessPoolTaskRunner):
            def __init__(self, max_workers: int) -> None:
                super().__init__(max_workers, initializer=remote.initialize, initargs=("a",), start_method="spawn")

        twin = Own(2).duplicate()
        assert type(twin) is Own
        assert (twin._initializer, twin._initargs, twin._start_method) == (remote.initialize, ("a",), "spawn")

    @pytest.mark.parametrize("kind", [ProcessPoolTaskRunner, ThreadPoolTaskRunner])
    def test_one_that_is_not_started_can_be_pickled(self, kind):
        runner = pickle.loads(pickle.dumps(kind(2)))
        assert runner == kind(2)
        with runner:
            assert runner.submit(remote.add, {"x": 1, "y": 1}).result() == 2
            with pytest.raises(TypeError, match=r"is started and cannot be pickled; pickle its duplicate\(\)"):
                pickle.dumps(runner)
            assert pickle.loads(pickle.dumps(runner.duplicate())) == runner

    @pytest.mark.parametrize("number", [0, -1, 1.5, "2"])
    def test_an_impossible_number_of_workers_is_refused_when_made(self, number):
        with pytest.raises(ValueError, match="max_workers must be a whole number of at least 1"):
            ProcessPoolTaskRunner(number)

    @pytest.mark.parametrize("options", [{"start_method": "thread"}, {"max_tasks_per_child": 0}])
    def test_impossible_options_are_refused_when_made(self, options):
        with pytest.raises(ValueError, match=next(iter(options))):
            ProcessPoolTaskRunner(1, **options)

    @pins("futures_runners", 63)
    def test_the_default_is_the_setting_else_the_number_of_processors(self):
        with temporary_settings(process_pool_max_workers=3):
            assert ProcessPoolTaskRunner() == processes(3)
        assert ProcessPoolTaskRunner()._max_workers == (os.cpu_count() or 1)

    @pins("futures_runners", 62)
    def test_submit_before_start_is_refused(self):
        with pytest.raises(RuntimeError, match="Task runner is not started"):
            processes().submit(remote.add, {})

    def test_an_initializer_that_cannot_be_sent_is_refused(self):
        with processes(initializer=lambda: None) as runner:
            future = runner.submit(remote.add, {"x": 1, "y": 1})
            with pytest.raises(NotTransferable, match="initializer cannot be sent"):
                future.result()

    def test_a_runner_that_is_given_nothing_starts_nothing(self):
        assert in_flow(lambda: 1) == 1


# ------------------------------------------------------------------------------------------------ what crosses


class TestWhatCrosses:
    @pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # 3.12 warns of what was asked for
    def test_every_start_method_runs_tasks_in_another_process(self, method):
        def body():
            assert remote.pid.submit().result() != os.getpid()
            return remote.add_async.submit(remote.add.submit(1), y=5).result()

        assert in_flow(body, processes(start_method=method)) == 7

    @pins("futures_runners", 64)
    def test_works_without_a_flow(self):
        with processes() as runner:
            for one in (remote.add, remote.add_async):
                future = runner.submit(one, {"x": 1, "y": 2})
                assert isinstance(future, ConcurrentFuture)
                assert future.result() == 3
            assert runner.map(remote.add, {"x": [1, 2]}).result() == [2, 3]
        assert current_client().read_task_run(future.task_run_id).state_name == "Completed"

    def test_values_of_own_classes_there_and_back(self):
        def body():
            point, plain = remote.shift.submit(remote.Point(1, 2), remote.Plain({1: (2, {3})})).result()
            return type(point), point, type(plain), plain.value

        assert in_flow(body) == (remote.Point, remote.Point(2, 3), remote.Plain, {1: (2, {3})})

    @pins("futures_runners", 76)
    def test_a_big_argument(self):
        assert in_flow(lambda: remote.length.submit(list(range(10_000))).result()) == 10_000

    def test_a_megabyte_and_more(self):
        data = os.urandom(3_000_000)
        assert in_flow(lambda: remote.add.submit(data, b"!").result()) == data + b"!"

    def test_variadic_parameters(self):
        assert in_flow(lambda: remote.spread.submit(1, [2], a={3}).result()) == ((1, [2]), {"a": {3}})

    def test_a_task_that_is_bound_to_an_object(self):
        assert in_flow(lambda: remote.Thing("one").greet.submit("two").result()) == "one greets two"

    def test_a_task_over_a_partial_and_a_builtin(self):
        import functools
        import math

        root = task(name="root")(math.sqrt)
        twice = task(name="twice")(functools.partial(math.pow, 2))
        assert in_flow(lambda: [root.submit(9.0).result(), twice.submit(3).result()]) == [3.0, 8.0]

    def test_options_of_another_task_over_the_same_function_are_its_own(self):
        named = remote.seen_here.with_options(name="another", tags=["extra"])
        found = in_flow(lambda: named.submit().result())
        assert (found["task"], found["run_tags"]) == ("another", ["extra"])

    @pins("futures_runners", 65, 108)
    def test_context_and_tags_are_those_of_each_submit(self):
        def body():
            with tags("a", "b"):
                first = remote.seen_here.submit()
            with tags("c"):
                second = remote.seen_here_async.submit()
            return first.result(), second.result(), remote.seen_here.submit().result(), fold().flow_run

        first, second, third, flow_run = in_flow(body)
        assert (first["tags"], second["tags"], third["tags"]) == (["a", "b"], ["c"], [])
        assert first["run_tags"] == ["a", "b"]
        assert (first["flow"], first["flow_run"], first["flow_run_name"]) == ("outer", flow_run.id, flow_run.name)
        assert (first["state"], first["run_count"]) == ("Running", 1)

    def test_settings_go_along(self):
        with temporary_settings(default_task_retries=4):
            assert in_flow(lambda: remote.seen_here.submit().result())["retries"] == 4

    def test_context_variables_of_the_program_stay(self):
        remote.VARIABLE.set("set")
        assert in_flow(lambda: remote.variable.submit().result()) == "unset"

    @pins("futures_runners", 77)
    def test_dependencies_are_waited_for_without_a_worker(self, tmp_path):
        def body():
            upstream = remote.touch_and_wait.submit(str(tmp_path / "started"), str(tmp_path / "go"))
            futures = [
                remote.add.submit(upstream, "!"),
                remote.add.submit([upstream], ["!"]),
                remote.add.submit(2, 1, wait_for=[upstream]),
                remote.add.submit(3, 1, wait_for=[remote.add.submit(1, wait_for=[upstream])]),
            ]
            assert not any(future.state.is_final() for future in (upstream, *futures))
            (tmp_path / "go").touch()
            return [future.result() for future in futures]

        assert in_flow(body) == ["went!", ["went", "!"], 3, 4]

    @pins("futures_runners", 81)
    def test_the_initializer_runs_once_in_each_worker(self, tmp_path):
        runner = processes(initializer=remote.initialize, initargs=("one", tmp_path))
        assert in_flow(lambda: [remote.read_initializer.submit().result() for _ in range(2)], runner) == [
            ["one", tmp_path]
        ] * 2
        runner = processes(initializer=remote.add_to_path, initargs=(str(tmp_path),))
        assert str(tmp_path) in in_flow(lambda: remote.whole_path.submit().result(), runner)

    def test_an_initializer_that_raises_crashes_the_run_and_says_so(self):
        def body():
            future = remote.add.submit(1)
            future.wait()
            return future.state.type.value, future.state.message

        kind, message = in_flow(body, processes(initializer=remote.initialize_badly))
        assert kind == "CRASHED"
        assert "initializer of its worker process failed: ValueError: no initializer" in message


# ------------------------------------------------------------------------------------------------ what is refused


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("made", "reason"),
        [
            (lambda: task(name="short")(lambda x: x), "it is a lambda"),
            (lambda: task(closure()), "it is defined inside the function closure"),
        ],
    )
    def test_lambdas_and_closures_at_submit_with_the_cure(self, made, reason):
        def body():
            with pytest.raises(NotTransferable, match="cannot run in another process") as caught:
                made().submit(1)
            return str(caught.value)

        message = in_flow(body)
        assert reason in message
        assert "Define its function with def at the top level of a module" in message
        assert fold().tasks == {}, "nothing is recorded of what was refused"

    @pytest.mark.parametrize("value", [threading.Lock(), [{"deep": lambda: None}]], ids=["lock", "lambda"])
    def test_arguments_at_submit_with_name_place_and_cure(self, value):
        def body():
            with pytest.raises(NotTransferable, match=r"argument 'y' of task 'add'.*Give what can be pickled"):
                remote.add.submit(1, value)
            with pytest.raises(NotTransferable, match="argument 'y'"):
                remote.add.map([1, 2], y=[3, value])

        in_flow(body)
        assert fold().tasks == {}

    def test_an_argument_out_of_an_upstream_fails_its_run_by_name(self):
        def body():
            with pytest.raises(NotTransferable, match="argument 'y' of task 'add'"):
                remote.add.submit(1, quote([remote.add.submit(1)])).result()
            return 1

        assert in_flow(body) == 1
        assert ["Pending", "Running", "Failed"] in task_states("add")

    def test_a_function_whose_name_means_something_else_by_now(self):
        shadowed = task(remote.Thing.make.__func__)
        original = remote.Thing.make
        remote.Thing.make = classmethod(lambda cls: None)
        try:
            with processes() as runner, pytest.raises(NotTransferable, match="names something else by now"):
                runner.submit(shadowed, {"cls": remote.Thing})
        finally:
            remote.Thing.make = original

    def test_an_unpicklable_result_fails_its_run_with_the_cure(self):
        def body():
            with pytest.raises(SerializationError, match=r"result of task 'return_a_lambda' cannot come back.*Return"):
                remote.return_a_lambda.submit().result()
            return remote.add.submit(1).result()

        assert in_flow(body) == 2


def closure():
    free = 1

    def inner(x):
        return x + free

    return inner


# ------------------------------------------------------------------------------------------------ failures


class TestFailures:
    @pins("futures_runners", 75)
    def test_an_exception_keeps_type_and_text(self):
        def body():
            with pytest.raises(ValueError, match="^one$"):
                remote.fail.submit("one").result()
            with pytest.raises(RuntimeError, match="^two$"):
                remote.fail_async.submit("two").result()
            return 1

        assert in_flow(body) == 1

    def test_the_traceback_of_the_worker_is_the_cause(self):
        def body():
            error = remote.fail.submit().result(raise_on_failure=False)
            return str(error.__cause__)

        assert "remote_tasks.py" in in_flow(body)

    @pins("futures_runners", 84)
    def test_exceptions_that_pickle_cannot_carry_come_back_described(self):
        def body():
            called = threading.Event()
            bad = remote.raise_bad_init.submit()
            bad.add_done_callback(lambda _: called.set())
            first = bad.result(raise_on_failure=False)
            assert called.wait(10)
            second = remote.raise_holding_a_lock.submit().result(raise_on_failure=False)
            return first, second

        first, second = in_flow(body)
        assert (type(first), str(first), first.code) == (remote.BadInit, "bad (7)", 7)
        assert isinstance(second, MicroflowException | remote.HoldsALock)
        assert "held" in str(second)

    def test_retries_are_attempts_of_the_same_run(self, tmp_path):
        again, marks = remote.fail_until.with_options(retries=2), tmp_path / "marks"
        marks.mkdir()
        assert in_flow(lambda: again.submit(str(marks), 3).result()) == 3
        assert task_states("fail_until") == [["Pending", "Running", "Retrying", "Retrying", "Completed"]]
        assert len(task_states("add")) == 3, "the calls of each attempt are runs"

    def test_a_timeout_kills_the_process_and_the_retry_has_another(self, tmp_path):
        def body():
            future = remote.too_slow.with_options(retries=1).submit(str(tmp_path / "pids"))
            with pytest.raises(TimeoutError, match="timed out after 0.2 second"):
                future.result()
            return future.state.name

        assert in_flow(body) == "TimedOut"
        assert task_states("too_slow") == [["Pending", "Running", "Retrying", "TimedOut"]]
        pids = (tmp_path / "pids").read_text().split()
        assert len(set(pids)) == 2
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)

    @pins("futures_runners", 78)
    def test_a_failed_upstream_leaves_a_run_not_ready(self):
        def body():
            failed = remote.fail.submit()
            futures = [remote.add.submit(failed), remote.add.submit(1, wait_for=[failed])]
            wait(futures)
            fine = remote.add.submit(1, wait_for=[allow_failure(failed)])
            return [future.state.name for future in futures], fine.result()

        assert in_flow(body) == (["NotReady", "NotReady"], 2)


class TestDeath:
    @pins("futures_runners", 104)
    @pytest.mark.parametrize(
        ("one", "reason"),
        [
            (remote.exit_by_sys, "aborted by a system exit call"),
            (remote.exit_by_os, "exited with status 3"),
            (remote.killed, "was killed by SIGKILL"),
        ],
        ids=["sys.exit", "os._exit", "SIGKILL"],
    )
    def test_only_the_task_itself_crashes(self, one, reason, tmp_path):
        def body():
            (tmp_path / "go").touch()
            others = remote.touch_and_wait.map([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "go"))
            dead = one.submit()
            dead.wait()
            with pytest.raises(CrashedRun):
                dead.result()
            assert remote.add.submit(1).result() == 2
            return dead.state.type.value, dead.state.message, others.result()

        kind, message, others = in_flow(body, processes(2))
        assert kind == "CRASHED"
        assert reason in message
        assert others == ["went", "went"]
        (states,) = task_states(one.name)
        assert states == ["Pending", "Running", "Crashed"]

    def test_a_worker_that_is_killed_from_outside(self, tmp_path):
        def body():
            future = remote.touch_and_wait.submit(str(tmp_path / "pid"), str(tmp_path / "never"))
            assert wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
            future.wait()
            return future.state.message

        assert "was killed by SIGTERM" in in_flow(body)

    def test_an_idle_worker_that_dies_costs_nothing(self):
        with processes() as runner:
            first = runner.submit(remote.pid, {"_": None}).result()
            os.kill(first, signal.SIGKILL)
            second = runner.submit(remote.pid, {"_": None}).result()
        assert first != second

    def test_a_worker_is_used_again_and_replaced_after_its_share(self):
        def pids(**options):
            with processes(**options) as runner:
                return [runner.submit(remote.pid, {"_": None}).result() for _ in range(4)]

        assert len(set(pids())) == 1
        assert len(set(pids(max_tasks_per_child=2))) == 2

    def test_a_fork_server_that_is_killed_costs_nothing(self):
        with processes(2) as runner:
            first = runner.submit(remote.pid, {"_": None}).result()
            os.kill(runner.carrier()._launcher._server.pid, signal.SIGKILL)
            assert runner.submit(remote.pid, {"_": None}).result() == first, "those whom it started live on"
            os.kill(first, signal.SIGKILL)
            assert runner.submit(remote.pid, {"_": None}).result() != first

    def test_a_death_is_noticed_behind_a_socket_that_a_child_of_the_task_holds_open(self):
        def body():
            future = remote.fork_and_die.submit()
            future.wait(20)
            return future.state.message

        assert "exited with status 5" in in_flow(body)

    def test_without_pidfds_a_death_is_noticed_too(self, monkeypatch):
        def refuse(pid):
            raise OSError("no such call")

        monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)

        def body():
            futures = [remote.exit_by_os.submit(), remote.fork_and_die.submit(), remote.too_slow.submit(os.devnull)]
            wait(futures)
            return [future.state.name for future in futures], remote.add.submit(1).result()

        assert in_flow(body) == (["Crashed", "Crashed", "TimedOut"], 2)

    def test_an_interrupted_flow_run_kills_what_runs(self, tmp_path):
        def body():
            remote.touch_and_wait.submit(str(tmp_path / "pid"), str(tmp_path / "never"))
            assert wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            in_flow(body)
        assert wait_until(lambda: _is_over(int((tmp_path / "pid").read_text())))
        assert fold().flow_run.state_name == "Crashed"

    def test_nothing_is_left_when_the_runner_is_left(self):
        with processes(2) as runner:
            runner.map(remote.pid, {"_": [1, 2, 3]}).wait()
            pids = [*runner.carrier().pids(), runner.carrier()._launcher._server.pid]
            assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)

    def test_workers_end_at_once_when_their_owner_is_killed(self, tmp_path):
        script = tmp_path / "owner.py"
        script.write_text(
            "import sys\n"
            "from microflow.task_runners import ProcessPoolTaskRunner\n"
            "from tests import remote_tasks\n"
            "given = {'started': sys.argv[1], 'go': sys.argv[1] + '.never'}\n"
            "with ProcessPoolTaskRunner(1) as runner:\n"
            "    runner.submit(remote_tasks.touch_and_wait, given).wait()\n"
        )
        told = tmp_path / "pid"
        owner = subprocess.Popen([sys.executable, str(script), str(told)], env=environment())
        assert wait_until(lambda: told.exists() and told.read_text() != "", owner)
        owner.kill()
        owner.wait()
        assert wait_until(lambda: _is_over(int(told.read_text())))


def _is_over(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


# ------------------------------------------------------------------------------------------------ nested runs


class TestNested:
    def test_calls_in_a_worker_are_recorded_in_the_run(self):
        assert in_flow(lambda: remote.parent_of.submit(1).result()) == [4, 11]
        run = fold()
        assert task_states("add") == [["Pending", "Running", "Completed"]] * 4
        (parent,) = task_ids("parent_of")
        for child in task_ids("add"):
            assert run.tasks[child].created["inputs"]["__parents__"] == [["task_run", parent]]
        ended = [body["run"] for body in bodies() if body["k"] == "state" and body["type"] == "COMPLETED"]
        assert ended[-1] == parent, "a task ends after its calls"

    def test_the_same_calls_have_the_same_ids_in_threads(self):
        ids = []
        for runner in (processes(), ThreadPoolTaskRunner(2)):
            in_flow(lambda: remote.parent_of.submit(1).result(), runner)
            run_id = current_client().store.list()[-1]
            flow_id = fold(run_id).flow_run.id.bytes
            ids.append((flow_id, set(task_ids("add", run_id))))
        assert len(ids[0][1]) == len(ids[1][1]) == 4

    def test_a_failure_of_a_call_is_the_parents(self):
        with pytest.raises(ValueError, match="from the child"):
            in_flow(lambda: remote.parent_of_failure.submit().result())
        assert task_states("fail") == [["Pending", "Running", "Failed"]]

    def test_what_a_task_submits_and_leaves_is_run_to_its_end(self):
        in_flow(lambda: remote.parent_that_leaves_work.submit().wait())
        assert task_states("add") == [["Pending", "Running", "Completed"]]

    @pins("futures_runners", 73)
    def test_recursion_by_submit(self):
        assert in_flow(lambda: remote.recurse.submit(5).result()) == 0
        assert len(task_ids("recurse")) == 6

    def test_a_subflow_has_its_own_log_and_is_tracked_in_the_parents(self):
        assert in_flow(lambda: remote.call_subflow.submit(1).result()) == 101
        client = get_client(sync_client=True)
        child = next(run for run in client.read_flow_runs() if run.flow_name == "subflow")
        parent = next(run for run in client.read_flow_runs() if run.flow_name == "outer")
        assert child.state_name == "Completed"
        assert child.parent_flow_run_id == parent.id
        assert any(h.created.get("child") == str(child.id) for h in fold(parent.id).tasks.values())


def bodies() -> list[dict]:
    """The records of the only run, in order."""
    client = current_client()
    (run_id,) = client.store.list()
    return [record.data for record in client.store.read(run_id).records if "run" in record.data]


# ------------------------------------------------------------------------------------------------ logs


class TestLogs:
    def test_what_a_worker_logs_is_logged_here_once_with_its_fields(self, caplog):
        with caplog.at_level(logging.INFO, logger="microflow"):
            in_flow(lambda: remote.log_lines.submit("one", "two").result())
        mine = [record for record in caplog.records if hasattr(record, "own")]
        assert [record.getMessage() for record in mine] == ["one from here", "two from here"]
        assert mine[0].process != os.getpid()
        assert str(mine[0].task_run_id) == task_ids("log_lines")[0]
        assert mine[0].flow_name == "outer"

    def test_levels_are_those_of_the_owner(self, caplog):
        with caplog.at_level(logging.ERROR, logger="microflow.task_runs"):
            in_flow(lambda: remote.log_lines.submit("one").result())
        assert [record for record in caplog.records if hasattr(record, "own")] == []

    def test_what_was_logged_before_a_death_is_not_lost(self, caplog):
        with caplog.at_level(logging.INFO, logger="microflow"):
            in_flow(lambda: remote.log_and_die.submit().wait())
        assert "last words" in caplog.text

    def test_a_thread_of_the_task_may_log(self, caplog):
        in_flow(lambda: remote.log_in_thread.submit().result())
        assert "from a thread" in caplog.text

    @pins("futures_runners", 83)
    def test_message_processors_see_change_and_drop(self, caplog):
        def shout(kind, payload):
            return kind, {**payload, "msg": payload["msg"].upper()}

        def drop_two(kind, payload):
            return None if "TWO" in payload["msg"] else (kind, payload)

        def broken():
            raise ValueError("no such processor")

        factories = [broken, lambda: shout, lambda: drop_two]
        runner = processes(subprocess_message_processor_factories=factories)
        with caplog.at_level(logging.INFO, logger="microflow"):
            in_flow(lambda: remote.log_lines.submit("one", "two").result(), runner)
        assert [record.getMessage() for record in caplog.records if hasattr(record, "own")] == ["ONE FROM HERE"]
        assert "a subprocess message processor could not be made" in caplog.text

    @pins("futures_runners", 83)
    def test_what_a_processor_may_not_do_drops_the_message_and_is_logged(self, caplog):
        delivered = list[Any]()

        def odd(kind, payload):
            if payload["msg"] == "raise":
                raise ValueError("no processor of this")
            return {"none": ("log",), "kind": ("event", payload)}.get(payload["msg"], (kind, payload))

        messages = MessageProcessors([lambda: odd], delivered.append)
        for text in ("raise", "none", "kind", "fine"):
            messages.deliver("log", {"msg": text})
        assert delivered == [{"msg": "fine"}]
        assert len(caplog.records) == 3

    @pins("futures_runners", 83)
    @pytest.mark.parametrize(("error", "expected"), [(RuntimeError, 1), (ValueError, 3)])
    def test_a_handler_that_is_shut_down_is_given_nothing_more(self, error, expected):
        tried = list[Any]()

        def sink(record):
            tried.append(record)
            raise error("shut down")

        messages = MessageProcessors([], sink)
        for number in range(3):
            messages.deliver("log", {"msg": str(number)})
        assert len(tried) == expected

    def test_the_factories_of_a_started_runner_stay(self):
        runner = processes()
        runner.subprocess_message_processor_factories = [lambda: None]
        assert len(runner.subprocess_message_processor_factories) == 1
        with runner, pytest.raises(RuntimeError, match="Cannot configure subprocess message processor factories"):
            runner.set_subprocess_message_processor_factories([])


# ------------------------------------------------------------------------------------------------ leaving


@pins("futures_runners", 79)
def test_leaving_joins_what_runs_and_cancels_what_waits(tmp_path):
    def body():
        remote.touch_and_wait.submit(str(tmp_path / "pid"), str(tmp_path / "go"))
        remote.add.submit(1)
        assert wait_until((tmp_path / "pid").exists)
        threading.Timer(0.1, (tmp_path / "go").touch).start()

    in_flow(body)
    assert task_states("touch_and_wait")[0][-1] == "Completed"
    assert task_states("add")[0][-1] == "Cancelled"
