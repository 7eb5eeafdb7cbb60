# SPDX-License-Identifier: Apache-2.0
"""Task runners: what is limited, what waits where, and what is left when a runner is left."""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import Future
from typing import Any
from uuid import UUID, uuid4

import pytest

from microflow import flow, task
from microflow._arguments import quote
from microflow._pool import LoopThread
from microflow.client.orchestration import current_client
from microflow.exceptions import CancelledRun, CrashedRun, MappingMissingIterable
from microflow.futures import ConcurrentFuture, FutureList
from microflow.settings import temporary_settings
from microflow.states import Completed
from microflow.task_runners import ConcurrentTaskRunner, TaskRunner, ThreadPoolTaskRunner
from tests.behaviour_support import pins
from tests.support import PATIENCE, Colour, Gauge, both, fold, memory_home, run, task_ids, task_states


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


def workers(number: int) -> ThreadPoolTaskRunner:
    return ThreadPoolTaskRunner(max_workers=number)


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("microflow-")]


@task
def add(x, y=1):
    return x + y


@task
async def add_async(x, y=1):
    return x + y


class TestConfiguration:
    @pins("futures_runners", 61)
    def test_a_duplicate_is_equal_and_another(self):
        runner = workers(3)
        twin = runner.duplicate()
        assert twin == runner
        assert hash(twin) == hash(runner)
        assert twin is not runner
        assert workers(2) != runner
        assert runner != 3
        assert repr(runner) == "ThreadPoolTaskRunner(max_workers=3)"

    def test_a_duplicate_keeps_the_class(self):
        class Own(ThreadPoolTaskRunner):
            pass

        assert type(Own(2).duplicate()) is Own
        assert (Own().name, workers(1).name) == ("own", "threadpool")
        assert ConcurrentTaskRunner is ThreadPoolTaskRunner

    @pytest.mark.parametrize("number", [0, -1, 1.5, "2"])
    def test_an_impossible_number_of_workers_is_refused_when_made(self, number):
        with pytest.raises(ValueError, match="max_workers must be a whole number of at least 1"):
            ThreadPoolTaskRunner(max_workers=number)

    @pins("futures_runners", 63)
    def test_the_default_is_the_setting(self):
        with temporary_settings(thread_pool_max_workers=5):
            assert ThreadPoolTaskRunner() == workers(5)

    @pins("futures_runners", 62)
    def test_a_runner_must_be_started_and_only_once(self):
        runner = workers(1)
        for call in (runner.submit, runner.map):
            with pytest.raises(RuntimeError, match="Task runner is not started"):
                call(add, {})
        with runner:
            with pytest.raises(RuntimeError, match="already started"):
                runner.__enter__()
        with runner:  # after its end it can be started again
            assert runner.submit(add, {"x": 1, "y": 1}).result() == 2
        with pytest.raises(RuntimeError, match="not started"):
            runner.submit(add, {})

    @pins("futures_runners", 64)
    def test_works_without_a_flow(self):
        with workers(2) as runner:
            future = runner.submit(add, {"x": 1, "y": 2})
            assert isinstance(future.task_run_id, UUID)
            assert isinstance(future, ConcurrentFuture)
            assert isinstance(future.wrapped_future, Future)
            assert future.result() == 3
            assert isinstance(runner.map(add, {"x": [1, 2]}), FutureList)
            assert runner.map(add, {"x": [1, 2]}).result() == [2, 3]
            with pytest.raises(MappingMissingIterable):
                runner.map(add, {"x": 1})
        assert current_client().read_task_run(future.task_run_id).state_name == "Completed"

    def test_a_flow_enters_a_duplicate_and_leaves_its_own_alone(self):
        seen: list[TaskRunner[Any]] = []

        class Watched(ThreadPoolTaskRunner):
            def __enter__(self):
                seen.append(self)
                return super().__enter__()

        made = flow(task_runner=Watched)(lambda: add.submit(1).result())
        made()
        made()
        assert len(set(map(id, [*seen, made.task_runner]))) == 3
        assert not made.task_runner._started


class TestSubmit:
    @both
    def test_the_creation_is_recorded_before_submit_returns(self, colour: Colour):
        release = threading.Event()
        held, made = task(lambda: release.wait(PATIENCE)), colour.task(lambda x: x, name="made")
        ids: list[str] = []

        @flow(task_runner=workers(1))
        def body():
            held.submit()
            future = made.submit(1)
            ids.append(str(future.task_run_id))
            assert fold().task_run(ids[0]).state_name == "Pending"
            release.set()
            future.wait()

        body()
        assert [state.name for state in fold().task_states(ids[0])] == ["Pending", "Running", "Completed"]

    def test_a_map_is_created_in_few_lines(self):
        @flow
        def body():
            add.map(range(1200)).wait()

        body()
        records = current_client().store.read(fold().run_id).records
        assert len({record.position for record in records if record.kind == "task"}) == 3

    @both
    def test_arguments_may_be_futures_of_either_colour(self, colour: Colour):
        @flow
        def body():
            one, two = add.submit(1), add_async.submit(1)
            made = colour.task(lambda *values: sum(values))
            return made.submit(one, two, 3, wait_for=[one]).result()

        assert body() == 7

    def test_wait_for_is_read_at_submission(self):
        release, order = threading.Event(), list[str]()

        @task
        def first():
            release.wait(PATIENCE)
            order.append("first")

        @flow
        def body():
            upstream: list[Any] = [first.submit()]
            later = task(lambda: order.append("later")).submit(wait_for=upstream)
            upstream.append(later)  # as a program does that collects all it submits
            release.set()
            later.result()

        body()
        assert order == ["first", "later"]

    def test_an_exit_in_a_task_fails_that_task_only(self):
        @task
        def leave(how):
            raise how

        @task
        async def leave_async(how):
            raise how

        @flow
        def body():
            names = []
            for made in (leave, leave_async):
                for how in (SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()):
                    future = made.submit(quote(how))
                    future.wait()
                    with pytest.raises(CrashedRun):
                        future.result()
                    names.append(future.state.name)
            return [*names, add.submit(1).result(), add_async.submit(1).result()]

        assert body() == ["Crashed"] * 6 + [2, 2]
        assert task_states("leave") + task_states("leave_async") == [["Pending", "Running", "Crashed"]] * 6

    def test_an_error_before_the_run_could_start_is_the_futures(self):
        named = task(task_run_name="{nope}")(lambda: 1)

        @flow
        def body():
            future = named.submit()
            future.wait()
            with pytest.raises(KeyError, match="nope"):
                future.result()
            return future.state.name

        assert body() == "Pending"


class TestSlots:
    """At most ``max_workers`` runs are active; who waits for another run is not."""

    @pins("futures_runners", 63)
    @pytest.mark.parametrize("number", [1, 2, 5])
    def test_no_more_blocking_tasks_are_active_than_workers(self, number):
        gauge, full = Gauge(), threading.Barrier(number)

        @task
        def work(x):
            with gauge:
                if x < number:
                    full.wait(PATIENCE)  # the limit is also reached

        flow(task_runner=workers(number))(lambda: work.map(range(40)).wait())()
        assert gauge.most == number

    def test_no_more_coroutine_tasks_are_active_than_workers(self):
        gauge = Gauge()

        @task
        async def work(x):
            with gauge:
                for _ in range(5):
                    await asyncio.sleep(0)

        flow(task_runner=workers(3))(lambda: work.map(range(30)).wait())()
        assert 1 <= gauge.most <= 3

    @pytest.mark.parametrize("number", [1, 2])
    @pins("futures_runners", 73, 105)
    def test_nested_blocking_submits_complete_with_any_number_of_workers(self, number):
        @task
        def down(n):
            return 0 if n == 0 else 1 + down.submit(n - 1).result()

        assert flow(task_runner=workers(number))(lambda: down.submit(40).result())() == 40

    def test_nested_awaited_submits_complete_with_one_worker(self):
        @task
        async def down(n):
            return 0 if n == 0 else 1 + await down.submit(n - 1)

        assert flow(task_runner=workers(1))(lambda: down.submit(40).result())() == 40

    def test_nested_maps_keep_the_limit(self):
        gauge = Gauge()

        @task
        def leaf(x):
            with gauge:
                return x

        @task
        def branch(x):
            return sum(leaf.map(range(x, x + 4)).result())

        @flow(task_runner=workers(2))
        def body():
            return sum(branch.map(range(10)).result())

        assert body() == sum(x + y for x in range(10) for y in range(4))
        assert gauge.most <= 2

    def test_coroutines_that_come_back_from_a_wait_do_not_raise_the_limit_for_good(self):
        gauge, hold = Gauge(), threading.Event()

        @task
        def leaf(x):
            with gauge:
                hold.wait(0.002)  # long enough that others would come in

        @task
        async def branch(x):
            await leaf.submit(x)
            await leaf.submit(-x)

        @flow(task_runner=workers(2))
        def body():
            branch.map(range(40)).wait()

        body()
        assert gauge.most <= 2

    def test_a_coroutine_that_blocks_does_not_keep_others_from_starting(self):
        """With one worker the slot goes to what was queued first, a coroutine: not on the loop that is blocked."""

        @task
        async def other():
            return 1

        @task
        async def parent():
            first = other.submit()
            return add.submit(1).result() + first.result()

        assert flow(task_runner=workers(1))(lambda: parent.submit().result())() == 3

    @pins("futures_runners", 107)
    def test_ten_thousand_dependents_park_no_thread(self):
        release, many = threading.Event(), 10_000
        number = 4
        before = threading.active_count()

        @task
        def upstream():
            release.wait(PATIENCE)
            return 1

        @flow(task_runner=workers(number))
        def body():
            one = upstream.submit()
            dependents = add.map([one] * many)
            waiting = threading.active_count() - before
            release.set()
            return [waiting, sum(dependents.result())]

        waiting, total = body()
        assert waiting <= number + 3
        assert total == 2 * many

    @pytest.mark.parametrize(("made", "depth"), [(add, 5000), (add_async, 2100)], ids=["sync", "async"])
    def test_a_long_chain_of_dependents_needs_no_recursion(self, made, depth):
        assert depth > 2 * sys.getrecursionlimit()

        @flow
        def body():
            future = made.submit(0)
            for _ in range(depth - 1):
                future = made.submit(future)
            return future.result()

        assert body() == depth

    def test_a_chain_behind_a_failure_ends_not_ready(self):
        @flow
        def body():
            future = task(lambda: 1 / 0).submit()
            for _ in range(1100):
                future = add.submit(future)
            future.wait()
            return future.state.name

        assert body() == "NotReady"


class TestLoops:
    """Coroutine tasks share one loop thread."""

    def test_coroutine_tasks_share_one_thread(self):
        seen: set[int] = set()

        @task
        async def where():
            seen.add(threading.get_ident())
            await asyncio.sleep(0)

        flow(lambda: FutureList([where.submit() for _ in range(20)]).wait())()
        assert len(seen) == 1
        assert threading.get_ident() not in seen

    def test_coroutine_tasks_can_gather(self):
        barrier_passed = []

        @task
        async def meet(event):
            event.append(1)
            while len(event) < 3:  # noqa: ASYNC110 - the others run meanwhile
                await asyncio.sleep(0)
            barrier_passed.append(1)

        @flow
        async def body():
            here: list[int] = []
            await asyncio.gather(*[meet.submit(quote(here)) for _ in range(3)])

        run(body())
        assert len(barrier_passed) == 3

    @pytest.mark.parametrize(
        "block",
        [
            lambda future: future.result(),
            lambda future: future.wait(),
            lambda future: future.result(timeout=PATIENCE),
            lambda future: FutureList([future]).result(),
            lambda future: FutureList([future]).wait(),
        ],
        ids=["result", "wait", "timeout", "list-result", "list-wait"],
    )
    def test_a_blocking_wait_for_what_runs_on_the_same_loop_is_refused(self, block):
        @task
        async def child(event):
            await event.wait()
            return "child"

        @task
        async def parent():
            event = asyncio.Event()
            future = child.submit(quote(event))
            while not future.wrapped_future.running():  # noqa: ASYNC110 - it starts on this very loop
                await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="await future"):
                block(future)
            assert future.wait(0) is None  # type: ignore[func-returns-value]  # a poll blocks nothing
            event.set()
            return await future

        assert flow(lambda: parent.submit().result())() == "child"

    def test_what_has_not_started_starts_on_another_loop_thread(self):
        threads: list[int] = []

        @task
        async def child(x):
            threads.append(threading.get_ident())
            return x

        @task
        async def parent():
            threads.append(threading.get_ident())
            return child.submit(1).result() + sum(child.map([2, 3]).result())

        @flow
        def body():
            return parent.submit().result()

        assert body() == 6
        assert threads[0] not in threads[1:]

    def test_loops_that_were_begun_while_the_flow_is_left_end_too(self, monkeypatch):
        begun, leave = threading.Event(), threading.Event()
        outside: ConcurrentFuture[Any] = ConcurrentFuture(uuid4(), Future())
        real = LoopThread.close

        def close(loop_thread, patience=None):
            leave.set()
            return real(loop_thread, patience)

        monkeypatch.setattr(LoopThread, "close", close)

        @task
        async def parent():
            begun.set()
            leave.wait(PATIENCE)  # blocks its loop until the pool's loops are being closed
            threading.Timer(0.01, lambda: outside.wrapped_future.set_result(Completed(data=1))).start()
            outside.wait()  # and now it makes the pool begin another loop

        @flow
        def body():
            parent.submit()
            begun.wait(PATIENCE)

        body()
        assert outside.result() == 1
        assert own_threads() == []


class TestLeaving:
    @both
    def test_what_has_not_started_is_cancelled_and_done(self, colour: Colour):
        begun, release, done = threading.Event(), threading.Event(), list[Any]()

        @task
        def held():
            begun.set()
            release.wait(PATIENCE)
            return "held"

        made = colour.task(lambda x: x, name="made")
        futures: list[ConcurrentFuture[Any]] = []

        @flow(task_runner=workers(1))
        def body():
            futures.append(held.submit())
            begun.wait(PATIENCE)
            futures.append(made.submit(1))
            futures.append(made.submit(futures[0]))
            for future in futures:
                future.add_done_callback(lambda each: done.append(each.state.name))
            futures[1].add_done_callback(lambda _: release.set())  # the cancelled do not wait for the held one

        body()
        assert [future.state.name for future in futures] == ["Completed", "Cancelled", "Cancelled"]
        assert sorted(done) == ["Cancelled", "Cancelled", "Completed"]
        assert futures[0].result() == "held"
        with pytest.raises(CancelledRun):
            futures[1].result()
        states = [fold().task_states(str(future.task_run_id)) for future in futures]
        assert [[state.name for state in each] for each in states[1:]] == [["Pending", "Cancelled"]] * 2
        assert [state.name for state in fold().states] == ["Pending", "Running", "Completed"]

    @both
    def test_what_runs_is_joined_before_the_flow_ends(self, colour: Colour):
        begun = threading.Event()

        @colour.task
        def held():
            begun.set()
            return "held"

        @flow
        def body():
            held.submit()
            begun.wait(PATIENCE)
            raise ValueError("the body")

        with pytest.raises(ValueError, match="the body"):
            body()
        run_end = fold().flow_run.end_time
        held_end = fold().task_run(task_ids("held")[0]).end_time
        assert run_end is not None
        assert held_end is not None
        assert held_end <= run_end
        assert own_threads() == []

    def test_a_cancelled_chain_of_any_length_is_done(self):
        begun, release = threading.Event(), threading.Event()

        @task
        def held():
            begun.set()
            release.wait(PATIENCE)
            return 1

        last: list[ConcurrentFuture[Any]] = []

        @flow(task_runner=workers(1))
        def body():
            future = held.submit()
            for _ in range(1100):
                future = add.submit(future)
            last.append(future)
            future.add_done_callback(lambda _: release.set())
            begun.wait(PATIENCE)

        body()
        assert last[0].state.is_cancelled()

    def test_submitting_while_the_runner_is_left_gives_a_cancelled_run(self):
        begun, leave = threading.Event(), threading.Event()
        states: list[str] = []

        @task
        def late():
            begun.set()
            leave.wait(PATIENCE)
            try:
                future = add.submit(1)
            except RuntimeError as error:
                states.append(str(error))
            else:
                future.wait()
                states.append(future.state.name)

        runner = workers(2)
        with runner:

            @flow
            def body():
                pass

            future = runner.submit(late, {})
            begun.wait(PATIENCE)
            leave.set()
        future.wait()

        @flow(task_runner=workers(1))
        def outer():
            leave.clear()
            begun.clear()
            late.submit()
            add.submit(5).add_done_callback(lambda _: leave.set())
            begun.wait(PATIENCE)

        outer()
        assert states[1:] == ["Task runner is not started"]

    @pins("futures_runners", 79)
    def test_cancel_all_can_be_called_twice_and_ends_the_runner(self):
        with workers(1) as runner:
            runner.cancel_all()
            runner.cancel_all()
            with pytest.raises(RuntimeError, match="not started"):
                runner.submit(add, {"x": 1, "y": 1})

    def test_an_interrupted_flow_is_recorded_before_its_tasks_are_joined(self):
        begun, crashed = threading.Event(), list[str]()

        @task
        def held():
            begun.set()
            for _ in range(1000):
                if fold().flow_run.state_name == "Crashed":
                    break
                threading.Event().wait(0.005)
            crashed.append(fold().flow_run.state_name or "")

        @flow
        def body():
            held.submit()
            begun.wait(PATIENCE)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            body()
        assert crashed == ["Crashed"]
        assert own_threads() == []

    def test_a_retry_gets_a_fresh_runner_after_the_last_attempts_tasks_ended(self):
        gauge, attempts = Gauge(), list[int]()

        @task
        def held():
            with gauge:
                threading.Event().wait(0.01)

        @flow(retries=2)
        def body():
            attempts.append(1)
            begun = held.submit()
            while begun.state.is_pending() and not begun.wrapped_future.running():
                pass
            if len(attempts) < 3:
                raise ValueError

        body()
        assert len(attempts) == 3
        assert gauge.most == 1
