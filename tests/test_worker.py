# SPDX-License-Identifier: Apache-2.0
"""Workers: deferred runs are claimed by one process at a time, run at least once, and never forgotten."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import microflow
from microflow import allow_failure, flow, tags, task
from microflow._worker_status import StatusServer
from microflow.cache_policies import INPUTS
from microflow.calls import deferred_call
from microflow.client.orchestration import current_client
from microflow.context import current_tags, describe_context
from microflow.exceptions import CrashedRun, InterruptedRun, StorageError
from microflow.futures import DistributedFuture, FutureList, wait
from microflow.states import Running, Scheduled
from microflow.task_runners import PrefectTaskRunner, WorkerTaskRunner
from microflow.worker import MOST_TAKEOVERS, TaskWorker, aserve, serve
from tests import served_tasks as served
from tests.behaviour_support import pins
from tests.kill_support import wait_until
from tests.serving_support import WorkerProcess
from tests.support import PATIENCE, Colour, Gauge, both, memory_home

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=["file", "memory"])
def home(request, monkeypatch):
    if request.param == "memory":
        memory_home(monkeypatch)


def states_of(future: Any) -> list[str]:
    return [state.name for state in current_client().read_task_run_states(future.task_run_id)]


def queue() -> list[str]:
    return current_client().store.queue.list()


def scheduled(made: Any, parameters: dict[str, Any], moment: datetime) -> DistributedFuture[Any]:
    """A deferred run that is not to begin before `moment`."""
    state = Scheduled(scheduled_time=moment)
    task_run = deferred_call(made, parameters)
    current_client().create_task_run(made, task_run, state=state, parameters=parameters, context=describe_context())
    return DistributedFuture(task_run.id)


@pytest.fixture
def workers():
    made: list[WorkerProcess] = []

    def make(*targets: str, **options: Any) -> WorkerProcess:
        all_tasks = [f"tests.served_tasks:{each.fn.__name__}" for each in served.TASKS]
        made.append(WorkerProcess(*(targets or all_tasks), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


class TestRuns:
    @both
    @pins("futures_runners", 93)
    def test_a_deferred_run_is_run_and_its_result_comes_back(self, home, colour: Colour):
        made = served.add_async if colour.isasync else served.add
        before = made.delay(1)
        with TaskWorker(made):
            future = made.delay(2, y=3)
            assert future.result(timeout=PATIENCE) == 5
            assert before.result(timeout=PATIENCE) == 2
        assert states_of(future) == ["Scheduled", "Running", "Completed"]
        assert queue() == []

    @pins("futures_runners", 96)
    def test_futures_of_deferred_runs_are_arguments_and_are_waited_for_without_a_slot(self, home):
        made = [served.add.delay(1)]
        for _ in range(20):
            made.append(served.add.delay(made[-1]))
        extra = served.total.delay(made[3], made[5], last=made[-1])
        for limit in (1, 3):
            with TaskWorker(served.add, served.total, limit=limit):
                assert made[-1].result(timeout=PATIENCE) == 22
                assert extra.result(timeout=PATIENCE) == 5 + 7 + 22

    def test_an_upstream_that_comes_later_is_waited_for(self, home):
        held = served.add.delay(1)
        with TaskWorker(served.total, limit=1):
            future = served.total.delay(held, 1)
            plain = served.total.delay(5)
            assert plain.result(timeout=PATIENCE) == 5
            assert future.state.name == "Scheduled"
            with TaskWorker(served.add):
                assert future.result(timeout=PATIENCE) == 3

    @pins("futures_runners", 109)
    def test_wait_for_is_obeyed_also_by_tasks_without_parameters(self, home):
        order: list[str] = []

        @task
        def first():
            time.sleep(0.02)
            order.append("first")

        @task
        def second():
            order.append("second")

        one = first.delay()
        two = second.apply_async(wait_for=[one])
        with TaskWorker(second, first):
            two.result(timeout=PATIENCE)
        assert order == ["first", "second"]

    @pins("futures_runners", 103)
    def test_a_failed_upstream_leaves_the_run_not_ready_and_its_future_done(self, home):
        failed = served.fail.delay()
        future = served.add.delay(failed)
        lenient = served.total.apply_async(wait_for=[allow_failure(failed)])
        with TaskWorker(served.fail, served.add, served.total):
            future.wait(PATIENCE)
            assert future.state.name == "NotReady"
            assert lenient.result(timeout=PATIENCE) == 0
            with pytest.raises(ValueError, match="^no$"):
                failed.result(timeout=PATIENCE)
        assert queue() == []

    @pins("futures_runners", 94, 97)
    def test_retries_names_tags_and_hooks_are_those_of_the_task(self, home):
        called: list[str] = []

        @task(
            retries=2,
            task_run_name="try {x}",
            tags={"own"},
            on_completion=[lambda *_: called.append("completed")],
            on_failure=[lambda *_: called.append("failed")],
            retry_condition_fn=lambda made, run, state: run.run_count < 2,
        )
        def again(x):
            called.append("ran")
            if len(called) < 2 or x == 0:
                raise ValueError(x)
            return x

        with tags("outer"):
            good = again.delay(7)
        with TaskWorker(again):
            assert good.result(timeout=PATIENCE) == 7
            assert called == ["ran", "ran", "completed"]
            bad = again.delay(0)
            bad.wait(PATIENCE)
            assert bad.state.is_failed()
            wait_until(lambda: len(called) == 6)
        assert called[3:] == ["ran", "ran", "failed"]
        run = current_client().read_task_run(good.task_run_id)
        assert (run.name, run.tags) == ("try 7", {"own", "outer"})

    @pins("futures_runners", 95)
    def test_keys_and_caches_are_those_of_the_task(self, home, tmp_path):
        called: list[int] = []

        @task(cache_policy=INPUTS, result_storage=tmp_path / "cached")
        def cached(x):
            called.append(x)
            return x

        @task(result_storage=tmp_path / "keyed", result_storage_key="of-{parameters[x]}")
        def keyed(x):
            return x

        futures = []
        for _ in range(2):  # what is cached is written after the end is told: a worker that is left has done so
            with TaskWorker(cached):
                futures.append(cached.delay(1))
                assert futures[-1].result(timeout=PATIENCE) == 1
        with TaskWorker(keyed):
            assert keyed.delay(7).result(timeout=PATIENCE) == 7
        assert (called, [each.state.name for each in futures]) == ([1], ["Completed", "Cached"])
        assert [path.name for path in (tmp_path / "keyed").rglob("of-*")] == ["of-7"]

    @pins("futures_runners", 65)
    def test_tags_of_the_place_are_seen_inside(self, home):
        @task
        async def of(x):
            return x, sorted(current_tags())

        with TaskWorker(served.seen, of), tags("a", "b"):
            future = served.seen.delay()
            found = future.result(timeout=PATIENCE)
            mapped = of.map([1, 2], deferred=True).result(timeout=PATIENCE)
        assert (found["tags"], found["run"]) == (["a", "b"], str(future.task_run_id))
        assert mapped == [(1, ["a", "b"]), (2, ["a", "b"])]

    @pins("futures_runners", 91)
    @pytest.mark.parametrize(
        ("args", "kwargs", "carried", "value"),
        [
            ((42,), None, {"x": 42, "y": 1}, 43),
            ([42], {"y": 2}, {"x": 42, "y": 2}, 44),
            (None, {"x": 4, "y": 3}, {"x": 4, "y": 3}, 7),
        ],
    )
    def test_arguments_are_carried_as_they_are_bound(self, home, args, kwargs, carried, value):
        future = served.add.apply_async(args, kwargs)
        assert current_client().read_task_run_parameters(future.task_run_id)["parameters"] == carried
        variadic = served.total.apply_async((42, 43), {"a": 1})
        given = current_client().read_task_run_parameters(variadic.task_run_id)["parameters"]
        assert given == {"values": (42, 43), "named": {"a": 1}}
        with TaskWorker(served.add, served.total):
            assert (future.result(timeout=PATIENCE), variadic.result(timeout=PATIENCE)) == (value, 86)

    @pins("futures_runners", 100)
    def test_a_direct_call_is_never_queued(self, home):
        assert served.add(1) == 2
        assert queue() == []

    def test_a_deferred_run_may_defer_and_call_and_run_flows(self, home):
        @flow
        def inner(x):
            return served.add(x)

        @task
        def outer(x):
            return inner(x) + served.add.delay(x).result(timeout=PATIENCE)

        with TaskWorker(outer, served.add, limit=1):
            assert outer.delay(1).result(timeout=PATIENCE) == 4

    @pins("futures_runners", 99)
    def test_what_cannot_be_run_fails_and_the_worker_goes_on(self, home, monkeypatch):
        named = task(task_run_name="{nope}")(lambda: 1)
        exits = task(lambda: sys.exit(3))
        futures = [named.delay(), exits.delay()]
        with TaskWorker(named, exits, served.add):
            wait(futures, timeout=PATIENCE)
            assert [each.state.name for each in futures] == ["Failed", "Crashed"]
            with pytest.raises(KeyError, match="nope"):
                futures[0].result()
            with pytest.raises(CrashedRun):
                futures[1].result()
            assert served.add.delay(1).result(timeout=PATIENCE) == 2
        assert queue() == []

    def test_a_run_of_another_task_is_left_to_others(self, home):
        future = served.add.delay(1)
        with TaskWorker(served.total):
            assert served.total.delay(1).result(timeout=PATIENCE) == 1
        assert (future.state.name, queue()) == ("Scheduled", [str(future.task_run_id)])

    def test_an_edited_task_still_serves_its_runs(self, monkeypatch):
        future = served.add.delay(1)
        edited = served.add.with_options()
        edited.task_key = "add-00000000"
        with TaskWorker(edited):
            assert future.result(timeout=PATIENCE) == 2


class TestLimits:
    @both
    @pins("futures_runners", 98)
    def test_no_more_run_at_a_time_than_the_limit(self, home, colour: Colour):
        gauge, order = Gauge(), list[str]()

        @colour.task
        def work(x):
            with gauge:
                order.append(f"begin {x}")
                yield asyncio.sleep(0.001) if colour.isasync else time.sleep(0.001)
                order.append(f"end {x}")

        futures = FutureList([work.delay(number) for number in range(12)])
        with TaskWorker(work, limit=1):
            futures.wait(PATIENCE)
        assert gauge.most == 1
        assert order == [f"{what} {number}" for number in range(12) for what in ("begin", "end")]

    @pins("futures_runners", 98)
    def test_what_is_over_the_limit_is_not_claimed(self, home, tmp_path):
        one, two = (served.when_told.delay(str(tmp_path), name) for name in "ab")
        with TaskWorker(served.when_told, limit=1) as worker:
            assert wait_until((tmp_path / "a.begun").exists)
            assert (worker.current_tasks, worker.available_tasks) == (1, 0)
            assert states_of(two) == ["Scheduled"]
            assert one.task_run_id in worker.in_flight_task_runs[served.when_told.task_key]
            for name in "ab":
                (tmp_path / f"{name}.go").touch()
            assert [each.result(timeout=PATIENCE) for each in (one, two)] == ["a", "b"]
        assert worker.finished_task_runs[served.when_told.task_key] == 2

    def test_without_a_limit_all_run_at_once(self, home):
        barrier = threading.Barrier(30)
        meet = task(lambda: barrier.wait(PATIENCE))
        futures = FutureList([meet.delay() for _ in range(30)])
        with TaskWorker(meet, limit=None) as worker:
            assert len(futures.result(timeout=PATIENCE)) == 30
            assert worker.current_tasks is None

    def test_runs_begin_in_the_order_of_their_scheduled_time_and_not_before(self, home):
        order: list[int] = []
        begun: dict[int, float] = {}

        @task
        def note(x):
            order.append(x)
            begun[x] = time.time()

        now = datetime.now(timezone.utc)
        due = {1: now + timedelta(seconds=0.25), 2: now - timedelta(seconds=5), 3: now - timedelta(seconds=9)}
        futures = []
        for number, moment in due.items():
            futures.append(scheduled(note, {"x": number}, moment))
        with TaskWorker(note, limit=1):
            FutureList(futures).wait(PATIENCE)
        assert order == [3, 2, 1]
        assert begun[1] >= due[1].timestamp()

    @pytest.mark.parametrize("limit", [0, -1, 1.5, "2"])
    def test_an_impossible_limit_is_refused(self, home, limit):
        with pytest.raises(ValueError, match="limit must be a whole number of at least 1"):
            TaskWorker(served.add, limit=limit)

    def test_what_is_no_task_is_refused(self, home):
        with pytest.raises(TypeError, match="only tasks can be served"):
            TaskWorker(served.add, print)  # type: ignore[arg-type]


class TestServe:
    def test_in_blocking_code_it_is_a_call_and_in_async_code_a_coroutine(self, home):
        futures = [served.add.delay(number) for number in range(2)]
        while not futures[1].state.is_completed():
            assert serve(served.add, timeout=0.1) is None
        assert futures[0].result() == 1

        async def both_forms():
            later = served.add.delay(5)
            while not later.state.is_completed():
                await aserve(served.add, timeout=0.1)
            await serve(served.add, timeout=0.01)
            await served.add.aserve(timeout=0.01)
            assert await later == 6

        asyncio.run(both_forms())
        served.add.serve(timeout=0.01)
        assert microflow.serve is serve

    def test_a_worker_is_started_and_stopped_once(self, home):
        worker = TaskWorker(served.add)
        assert not worker.started
        with pytest.raises(RuntimeError, match="not started"):
            worker.stop()
        with worker:
            assert worker.started
            assert worker.client_id.endswith(f"-{os.getpid()}")
            with pytest.raises(RuntimeError, match="already started"):
                worker.start()
            worker.stop()
        assert not worker.started

        async def as_context():
            async with TaskWorker(served.add) as other:
                await served.add.delay(1)
                await other.astop()

        asyncio.run(as_context())

    def test_a_worker_that_is_watched_says_what_it_does(self, home, tmp_path):
        future = served.when_told.delay(str(tmp_path), "a")
        with TaskWorker(served.when_told, served.add, limit=2) as worker, StatusServer(worker, 0) as server:
            assert wait_until((tmp_path / "a.begun").exists)
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/status") as answer:
                said = json.load(answer)
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{server.port}/other")
            (tmp_path / "a.go").touch()
            future.wait(PATIENCE)
        key = served.when_told.task_key
        assert list(said["in_flight"][key]) == [str(future.task_run_id)]
        assert (said["limit"], said["current"], said["available"], said["stopping"]) == (2, 1, 1, False)
        assert said["tasks"] == sorted([key, served.add.task_key])
        assert said["client_id"] == worker.client_id
        assert serve(served.add, status_server_port=0, timeout=0.01) is None

    def test_one_run_can_be_given_to_a_worker(self, home):
        future = scheduled(served.add, {"x": 1, "y": 1}, datetime.now(timezone.utc) + timedelta(hours=1))
        with TaskWorker(served.add, limit=1) as worker:
            worker.execute_task_run(current_client().read_task_run(future.task_run_id))
            assert future.result(timeout=PATIENCE) == 2
            with pytest.raises(RuntimeError, match="has ended"):
                worker.execute_task_run(current_client().read_task_run(future.task_run_id))


class TestRunner:
    def test_what_is_submitted_is_deferred(self, home, caplog):
        @flow(task_runner=WorkerTaskRunner)
        def body():
            one = served.add.submit(1)
            mapped = served.total.map([1, 2, 3], unmapped_extra=one)
            return [one.result(timeout=PATIENCE), mapped.result(timeout=PATIENCE), type(one)]

        with TaskWorker(served.add, served.total), caplog.at_level("INFO"):
            one, mapped, kind = body()
        assert (one, mapped, kind) == (2, [3, 4, 5], DistributedFuture)
        assert "waits for a worker" in caplog.text

    @pins("futures_runners", 61, 62)
    def test_it_is_a_runner_like_the_others(self, home):
        runner = WorkerTaskRunner()
        assert PrefectTaskRunner is WorkerTaskRunner
        assert (runner.name, type(runner.duplicate())) == ("worker", WorkerTaskRunner)
        assert runner.duplicate() is not runner
        with pytest.raises(RuntimeError, match="Task runner is not started"):
            runner.submit(served.add, {})
        with runner:
            first = runner.submit(served.add, {"x": 1, "y": 1})
            second = runner.submit(served.total, {"values": (1, 2), "named": {"a": 3}}, wait_for=first)  # type: ignore[arg-type]
        with TaskWorker(served.add, served.total):
            assert (second.result(timeout=PATIENCE), first.state.is_completed()) == (6, True)


# -------------------------------------------------------------------------------------------- other processes


class TestProcesses:
    def test_a_run_begins_soon_after_it_was_deferred(self, workers):
        """The middle of 20 runs, on a machine that does other things: ten times the 25 ms that it is to take."""
        workers()
        served.add.delay(0).wait(PATIENCE)
        took = []
        for number in range(20):
            asked = time.time()
            future = served.add.delay(number)
            future.wait(PATIENCE)
            start = current_client().read_task_run(future.task_run_id).start_time
            assert start is not None
            took.append(start.timestamp() - asked)
        assert statistics.median(took) < 0.25

    @pins("futures_runners", 101)
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_finishes_what_runs_and_leaves_the_rest(self, workers, tmp_path, number):
        futures = [served.when_told.delay(str(tmp_path), name) for name in "abc"]
        worker = workers(limit=2)
        assert wait_until(lambda: all((tmp_path / f"{name}.begun").exists() for name in "ab"))
        worker.process.send_signal(number)
        time.sleep(0.5)  # it looks for the signal every 10 ms
        for name in "abc":
            (tmp_path / f"{name}.go").touch()
        assert worker.ended() == 0
        assert [each.state.name for each in futures] == ["Completed", "Completed", "Scheduled"]
        assert not (tmp_path / "c.begun").exists()
        workers()
        assert futures[2].result(timeout=PATIENCE) == "c"

    @both
    def test_a_retry_that_waits_for_its_time_is_left_to_others_who_count_on(self, home, colour: Colour):
        """The run had one retry, which was decided on by the first worker and is made by the second."""
        called: list[int] = []

        @colour.task(retries=1, retry_delay_seconds=1.5)
        def again():
            called.append(1)
            raise ValueError("again")

        future = again.delay()
        with TaskWorker(again):
            assert wait_until(lambda: states_of(future)[-1] == "AwaitingRetry")
        assert states_of(future) == ["Scheduled", "Running", "AwaitingRetry"]
        with TaskWorker(again), pytest.raises(ValueError, match="again"):
            future.result(timeout=PATIENCE)
        assert states_of(future) == ["Scheduled", "Running", "AwaitingRetry", "Running", "Failed"]
        assert len(called) == 2

    def test_a_run_that_was_begun_by_a_dead_worker_runs_again_unless_it_may_not(self, home):
        def body():
            return "ran"

        often, once = task(body), task(at_most_once=True, name="once")(lambda: "ran")
        futures = [often.delay(), once.delay(), once.delay()]
        client = current_client()
        for future in futures[:2]:
            live = client.claim(str(future.task_run_id))
            live.propose_task(live.run.task_run(live.run_id), Running())
            client.abandon(live)  # as if its process had died
        with TaskWorker(often, once):
            assert futures[0].result(timeout=PATIENCE) == "ran"
            with pytest.raises(InterruptedRun, match="at_most_once"):
                futures[1].result(timeout=PATIENCE)
            assert futures[2].result(timeout=PATIENCE) == "ran"

    def test_a_queue_that_cannot_be_read_for_a_while_does_not_end_the_worker(self, home, monkeypatch):
        slept = threading.Event()
        queue_type = type(current_client().store.queue)
        real = queue_type.names

        def names(self):
            if not slept.is_set():
                raise StorageError("out of reach")
            return real(self)

        monkeypatch.setattr(queue_type, "names", names)
        monkeypatch.setattr("microflow.worker.time.sleep", lambda seconds: slept.set())
        future = served.add.delay(1)
        with TaskWorker(served.add):
            assert future.result(timeout=PATIENCE) == 2

    def test_a_run_whose_end_could_not_be_recorded_is_run_again_by_the_same_worker(self, home, monkeypatch):
        monkeypatch.setattr("microflow._candidates.LOOK_AGAIN", 0.05)
        monkeypatch.setattr("microflow._candidates.OWNERS_CHECK", 0.05)
        store_type, refused = type(current_client().store), list[int]()
        real = store_type.append

        def append(self, run_id, bodies, **options):
            if not refused and any(body.get("type") == "COMPLETED" for body in bodies):
                refused.append(1)
                raise StorageError("the disk is full")
            return real(self, run_id, bodies, **options)

        monkeypatch.setattr(store_type, "append", append)
        future = served.add.delay(1)
        with TaskWorker(served.add):
            assert future.result(timeout=PATIENCE) == 2
        assert refused
        assert states_of(future) == ["Scheduled", "Running", "Running", "Completed"]

    def test_a_log_that_cannot_be_read_for_a_while_is_read_later_and_complained_of_once(
        self, home, monkeypatch, caplog
    ):
        monkeypatch.setattr("microflow._candidates.LOOK_AGAIN", 0.05)
        monkeypatch.setattr("microflow._candidates.OWNERS_CHECK", 0.05)
        with TaskWorker(served.add) as worker:
            client_type, tried = type(worker.client), list[int]()
            real = client_type.fold

            def fold(self, run_id):
                if threading.current_thread().name == "microflow worker" and len(tried) < 3:
                    tried.append(1)
                    raise StorageError("out of reach")
                return real(self, run_id)

            monkeypatch.setattr(client_type, "fold", fold)
            assert served.add.delay(1).result(timeout=PATIENCE) == 2
        assert len(tried) == 3
        assert [each.message for each in caplog.records].count(
            next(each.message for each in caplog.records if "out of reach" in each.message)
        ) == 1

    @pins("futures_runners", 110)
    def test_the_runs_of_a_killed_worker_are_run_by_another_and_who_waits_goes_on_waiting(self, workers, tmp_path):
        future = served.when_told.delay(str(tmp_path), "a")
        first = workers()
        assert wait_until((tmp_path / "a.begun").exists)
        (tmp_path / "a.begun").unlink()
        second = workers()
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
        assert wait_until((tmp_path / "a.begun").exists)
        assert future._final_state is None
        (tmp_path / "a.go").touch()
        assert future.result(timeout=PATIENCE) == "a"
        assert states_of(future) == ["Scheduled", "Running", "Running", "Completed"]
        assert second.end() == 0

    @pins("futures_runners", 110)
    def test_a_run_that_kills_its_workers_is_given_up(self, workers):
        killer = task(_kill_me)
        future = killer.delay()
        for _ in range(MOST_TAKEOVERS + 1):
            worker = workers("tests.test_worker:killing")
            worker.process.wait(PATIENCE)
        workers("tests.test_worker:killing")
        with pytest.raises(CrashedRun, match="4 processes ended while they ran it"):
            future.result(timeout=PATIENCE)
        assert queue() == []

    @pytest.mark.parametrize(
        ("words", "status", "said"),
        [
            (["os:getcwd"], 2, b"os:getcwd: only tasks and flows can be served"),
            (["tests.served_tasks:nope"], 2, b"there is no 'nope'"),
            (["tests.served_tasks:add", "--limit", "0"], 2, b"--limit"),
            ([], 2, b"TARGET"),
        ],
    )
    def test_wrong_words_are_said_so(self, words, status, said):
        command = [sys.executable, "-m", "microflow", "serve", *words]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE)
        assert ended.returncode == status
        assert said in ended.stderr


def _kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


killing = task(_kill_me)


@pytest.mark.slow
def test_with_a_worker_killed_every_second_each_of_two_thousand_runs_completes(workers, trials, tmp_path):
    """No run is executed by two processes at the same time, and each is recorded as completed once."""
    many = trials(2000)
    futures = [served.witnessed.delay(str(tmp_path), number) for number in range(many)]
    running = [workers(limit=4) for _ in range(3)]
    killed = 0
    while not wait(futures[-1:], timeout=1.0).done or queue():
        victim = running.pop(0)
        victim.close()
        killed += 1
        running.append(workers(limit=4))
    assert FutureList(futures).result(timeout=60) == list(range(many))
    assert killed
    for number in range(many):
        check_witness((tmp_path / str(number)).read_text())
    ends = Counter(tuple(states_of(future))[-1] for future in futures)
    assert ends == {"Completed": many}


def check_witness(text: str) -> None:
    """One execution after the other; each but the last may lack its end, since its process was killed."""
    lines = [line.split() for line in text.splitlines()]
    begun = [(int(pid), int(moment)) for what, pid, moment in lines if what == "begin"]
    ended = {int(pid): int(moment) for what, pid, moment in lines if what == "end"}
    assert begun[-1][0] in ended, text
    for (pid, _), (_, next_begin) in itertools.pairwise(begun):
        assert pid not in ended or ended[pid] <= next_begin, text
    assert lines[-1][0] == "end", text
