# SPDX-License-Identifier: Apache-2.0
"""Futures: waiting with and without a deadline, callbacks, lists of futures, futures inside of containers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import gc
import itertools
import sys
import threading
from collections import OrderedDict
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from microflow import flow, task
from microflow._arguments import opaque, quote
from microflow._waits import SLOT
from microflow.exceptions import CancelledRun, CrashedRun
from microflow.futures import (
    ConcurrentFuture,
    FutureList,
    PrefectFuture,
    RunFuture,
    TaskRunFuture,
    WrappedFuture,
    as_completed,
    resolve_futures_to_results,
    resolve_futures_to_states,
    wait,
)
from microflow.states import Cancelled, Completed, Crashed, Failed, Pending, State
from tests.behaviour_support import pins
from tests.support import PATIENCE, memory_home, run

NEGATIVE = "'timeout' must be a non-negative number, got -1"


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


def open_future() -> ConcurrentFuture[Any]:
    """A future whose run has not ended; ``end`` ends it."""
    return ConcurrentFuture(uuid4(), concurrent.futures.Future())


def end(future: ConcurrentFuture[Any], outcome: object = None) -> None:
    future.wrapped_future.set_result(outcome if isinstance(outcome, State) else Completed(data=outcome))


def ended(outcome: object = None) -> ConcurrentFuture[Any]:
    """A future whose run has ended, but whose state nobody has asked for yet."""
    future = open_future()
    end(future, outcome)
    return future


class Done(TaskRunFuture[Any]):
    """A third party's future that is complete from the start."""

    def __init__(self, value: object) -> None:
        super().__init__(uuid4())
        self._final_state = Completed(data=value)

    def wait(self, timeout=None):
        pass

    def result(self, timeout=None, raise_on_failure=True):
        assert self._final_state is not None
        return self._final_state.read_result(raise_on_failure)

    def add_done_callback(self, fn):
        fn(self)


def in_thread(work: Any) -> Any:
    """What `work` comes to in a thread of its own."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


anywhere = pytest.mark.parametrize("where", [lambda work: work(), in_thread], ids=["main-thread", "other-thread"])


class TestConcurrentFuture:
    @anywhere
    @pins("futures_runners", 11)
    def test_a_wait_that_times_out_returns_and_the_state_is_pending(self, where):
        future = open_future()
        for timeout in (0.001, 0, -1):
            assert where(lambda timeout=timeout: future.wait(timeout)) is None
        assert future.state.is_pending()

    @anywhere
    @pins("futures_runners", 16)
    def test_a_result_that_times_out_names_the_run(self, where):
        future = open_future()
        for timeout in (0.001, 0, -1):
            with pytest.raises(TimeoutError, match=f"Task run {future.task_run_id} did not complete within {timeout}"):
                where(lambda timeout=timeout: future.result(timeout))

    @anywhere
    @pins("futures_runners", 12)
    def test_a_timeout_of_zero_is_a_poll(self, where):
        assert where(lambda: ended(3).result(timeout=0)) == 3

    def test_polling_leaves_nothing_behind(self):
        future = open_future()
        for _ in range(100):
            future.wait(0)
        assert future.wrapped_future._done_callbacks == []

    def test_the_final_state_is_there_without_a_wait(self):
        assert ended(5).state.result(_sync=True) == 5

    def test_waiting_ends_when_the_run_does(self):
        future, waiting = open_future(), threading.Event()
        threading.Thread(target=lambda: (waiting.wait(PATIENCE), end(future, 7))).start()
        waiting.set()
        assert future.result() == 7

    @pins("futures_runners", 14)
    def test_a_failed_run_raises_its_exception_or_gives_it_back(self):
        error = ValueError("oops")
        future = ended(Failed(data=error))
        future.wait()
        with pytest.raises(ValueError) as caught:
            future.result()
        assert caught.value is error
        assert future.result(raise_on_failure=False) is error

    @pins("futures_runners", 13)
    def test_any_other_value_is_the_result(self):
        future = open_future()
        future.wrapped_future.set_result(42)
        assert future.result(raise_on_failure=False) == 42

    def test_an_executors_error_raises_from_result_but_not_from_wait(self):
        future = open_future()
        future.wrapped_future.set_exception(RuntimeError("pool"))
        future.wait()
        assert future.state.is_pending()
        with pytest.raises(RuntimeError, match="pool"):
            future.result(raise_on_failure=False)

    def test_a_timeout_error_of_the_task_passes_unchanged(self):
        with pytest.raises(TimeoutError, match="^mine$"):
            ended(Failed(data=TimeoutError("mine"))).result(timeout=5)

    def test_an_interrupt_in_a_task_does_not_interrupt_who_asks_for_its_result(self):
        future = ended(Crashed(message="exited", data=SystemExit(3)))
        with pytest.raises(CrashedRun, match="exited"):
            future.result()
        assert isinstance(future.result(raise_on_failure=False), SystemExit)

    def test_a_cancelled_future_counts_as_done_and_cancelled(self):
        future = open_future()
        future.wrapped_future.cancel()
        future.wait()
        assert future.state.is_cancelled()
        with pytest.raises(CancelledRun):
            future.result()

    def test_is_known_by_identity(self):
        run_id, wrapped = uuid4(), concurrent.futures.Future[Any]()
        one, two = ConcurrentFuture[Any](run_id, wrapped), ConcurrentFuture[Any](run_id, wrapped)
        assert one != two
        assert len({one, two, one}) == 2

    def test_a_subclass_with_only_wait_and_result_can_be_made(self):
        class Own(WrappedFuture[int]):
            def wait(self, timeout=None):
                self._final_state = Completed(data=1)

            def result(self, timeout=None, raise_on_failure=True):
                return 1

        own = Own(uuid4(), concurrent.futures.Future())
        assert own.state.is_pending()
        assert resolve_futures_to_results([own]) if own.wait() else own.result() == 1

    def test_the_abstract_base_has_the_references_name_too(self):
        assert PrefectFuture is RunFuture
        with pytest.raises(TypeError):
            RunFuture(uuid4())  # type: ignore[abstract]


class TestAwait:
    def test_awaiting_gives_the_result_or_raises(self):
        async def body():
            loop = asyncio.get_running_loop()
            future = open_future()
            loop.call_soon(end, future, 4)
            values = [await future, await future, await ended(5)]
            with pytest.raises(ValueError):
                await ended(Failed(data=ValueError()))
            return values

        assert run(body()) == [4, 4, 5]

    def test_the_loop_goes_on_while_a_future_is_awaited(self):
        async def body():
            future, other = open_future(), asyncio.Event()

            async def beside():
                other.set()
                end(future, 1)

            return await asyncio.gather(future, beside(), _wait_for(other))

        async def _wait_for(event):
            await event.wait()

        assert run(body())[0] == 1

    def test_a_cancelled_await_leaves_the_run_alone(self):
        async def body():
            future = open_future()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.ensure_future(_result(future)), 0.001)
            end(future, 1)
            return await future

        async def _result(future):
            return await future

        assert run(body()) == 1


class TestCallbacks:
    def test_are_called_once_with_the_future_in_their_order(self):
        future, seen = open_future(), list[Any]()
        for number in range(3):
            future.add_done_callback(lambda done, number=number: seen.append((number, done)))
        end(future, 9)
        assert seen == [(number, future) for number in range(3)]
        assert future.result() == 9

    def test_a_late_one_is_called_at_once_in_the_callers_thread(self):
        for future in (ended(1), open_future()):
            if not future.wrapped_future.done():
                end(future)
                future.wait()
            seen: list[Any] = []
            future.add_done_callback(lambda _, seen=seen: seen.append(threading.current_thread()))
            assert seen == [threading.current_thread()]

    def test_the_result_is_there_inside_of_the_callback(self):
        future, seen = open_future(), list[Any]()
        future.add_done_callback(lambda done: seen.append(done.result()))
        end(future, 2)
        assert seen == [2]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    @pins("futures_runners", 10)
    def test_one_that_raises_hurts_neither_the_others_nor_those_who_wait(self, error, caplog):
        future, seen, waiting = open_future(), list[Any](), threading.Event()

        def bad(done):
            raise error("bad callback")

        future.add_done_callback(bad)
        future.add_done_callback(seen.append)
        thread = threading.Thread(target=lambda: (waiting.set(), seen.append(wait([future]).done)))
        thread.start()
        waiting.wait(PATIENCE)
        end(future)
        thread.join(PATIENCE)
        assert seen[0] is future
        assert {future} in seen
        assert list(as_completed([future])) == [future]
        told = [record for record in caplog.records if record.exc_info and str(record.exc_info[1]) == "bad callback"]
        assert len(told) == 1

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_one_that_raises_hurts_no_dependent(self, error):
        started = threading.Event()

        @task
        def first():
            started.wait(PATIENCE)
            return 1

        @task
        def second(x):
            return x + 1

        def bad(done):
            raise error

        @flow
        def body():
            one = first.submit()
            one.add_done_callback(bad)
            two = second.submit(one)
            started.set()
            return two.result()

        assert body() == 2


class TestWait:
    @anywhere
    @pins("futures_runners", 2, 3, 106)
    def test_tells_done_from_not_done(self, where):
        done, hanging = [ended() for _ in range(5)], open_future()
        for timeout in (0, 0.01):
            result = where(lambda timeout=timeout: wait([*done, hanging, done[0]], timeout=timeout))
            assert (result.done, result.not_done) == (set(done), {hanging})

    @pins("futures_runners", 4)
    def test_a_slow_first_one_does_not_hide_the_others(self):
        slow, quick = open_future(), [open_future() for _ in range(3)]
        thread = threading.Thread(target=lambda: [end(each) for each in quick])
        thread.start()
        thread.join()
        done, not_done = wait([slow, *quick], timeout=0.05)
        assert (done, not_done) == (set(quick), {slow})

    def test_of_nothing_is_done_at_once(self):
        assert wait([]) == (set(), set())
        assert list(as_completed([], timeout=0)) == []

    def test_everything_that_ended_is_done_however_it_ended(self):
        broken, cancelled = open_future(), open_future()
        broken.wrapped_future.set_exception(SystemExit())
        cancelled.wrapped_future.cancel()
        futures = [broken, cancelled, ended(Failed()), ended(Cancelled()), ended(Pending(name="NotReady")), Done(1)]
        for timeout in (None, 0):
            assert wait(futures, timeout).done == set(futures)

    def test_adopts_the_states(self):
        future = ended(1)
        wait([future], timeout=1)
        assert future._final_state is not None

    def test_takes_any_iterable_and_no_other_things(self):
        future = ended()
        assert wait(iter([future])).done == {future}
        for function in (wait, as_completed):
            with pytest.raises(TypeError, match="not a future of a run"):
                list(function([5]))  # type: ignore[list-item,call-overload,operator]

    @pins("futures_runners", 1)
    def test_a_negative_timeout_is_refused(self):
        for call in (lambda: wait([], timeout=-1), lambda: list(as_completed([], timeout=-1))):
            with pytest.raises(ValueError, match=NEGATIVE):
                call()
        with pytest.raises(ValueError, match=NEGATIVE):
            FutureList([open_future()]).result(timeout=-1)
        with pytest.raises(ValueError, match=NEGATIVE):
            FutureList().wait(timeout=-1)

    def test_a_state_that_changes_only_in_wait_is_read_after_it(self):
        class Lazy(Done):
            def __init__(self):
                super().__init__(0)
                self._final_state = None

            def wait(self, timeout=None):
                self._final_state = Completed(data="waited")

        lazy = Lazy()
        assert resolve_futures_to_states([lazy])[0].result(_sync=True) == "waited"


class TestAsCompleted:
    @pins("futures_runners", 8)
    def test_yields_in_the_order_of_completion_and_each_once(self):
        futures = [open_future() for _ in range(4)]
        order = [2, 0, 3, 1]
        seen = []
        completed = as_completed([*futures, futures[0]], timeout=PATIENCE)
        for number in order:
            thread = threading.Thread(target=end, args=(futures[number], number))
            thread.start()
            seen.append(next(completed).result())
            thread.join()
        assert seen == order
        assert list(completed) == []

    @anywhere
    @pins("futures_runners", 5, 6)
    def test_a_timeout_says_how_many_are_left(self, where):
        done, hanging = [ended() for _ in range(5)], open_future()

        def collect():
            seen = []
            try:
                for future in as_completed([hanging, *done], timeout=0.01):
                    seen.append(future)
            except TimeoutError as error:
                return seen, error.args
            return seen, None

        assert where(collect) == (done, ("1 (of 6) futures unfinished",))

    @anywhere
    @pins("futures_runners", 9)
    def test_what_ends_meanwhile_is_yielded_before_the_timeout(self, where):
        done, later, *hanging = ended(), open_future(), open_future(), open_future()

        def collect():
            seen = []
            try:
                for future in as_completed([*hanging, later, done], timeout=0.01):
                    seen.append(future)
                    if future is done:
                        end(later)
            except TimeoutError as error:
                return seen, error.args
            return seen, None

        assert where(collect) == ([done, later], ("2 (of 4) futures unfinished",))

    @anywhere
    @pins("futures_runners", 6, 7, 106)
    def test_zero_polls(self, where):
        future = ended(3)
        assert where(lambda: [each.result() for each in as_completed([future], timeout=0)]) == [3]
        with pytest.raises(TimeoutError, match=r"1 \(of 1\) futures unfinished"):
            where(lambda: list(as_completed([open_future()], timeout=0)))

    def test_the_clock_runs_while_the_consumer_works(self, monkeypatch):
        now = [100.0]
        monkeypatch.setattr("microflow._arrivals.time.monotonic", lambda: now[0])
        completed = as_completed([ended(), open_future()], timeout=5)
        next(completed)
        now[0] += 6
        with pytest.raises(TimeoutError):
            next(completed)

    def test_an_abandoned_generator_hurts_nobody(self):
        future = open_future()
        completed = as_completed([ended(), future])
        next(completed)
        completed.close()
        end(future, 1)
        assert future.result() == 1


class TestManyFutures:
    """100,000 futures cost a bounded number of steps each: steps are counted, no clock is read."""

    MANY = 100_000

    class Counting(Done):
        steps = 0

        def __init__(self, like):
            self.__dict__.update(like.__dict__)

        def wait(self, timeout=None):
            type(self).steps += 1

        def __hash__(self):
            type(self).steps += 1
            return super().__hash__()

        __eq__ = object.__eq__

    @pytest.mark.parametrize("consume", [lambda many: list(as_completed(many)), lambda many: wait(many).done])
    def test_done_futures_take_linear_work(self, consume, monkeypatch):
        monkeypatch.setattr(self.Counting, "steps", 0)
        like = Done(1)
        futures = [self.Counting(like) for _ in range(self.MANY)]
        assert len(consume(futures)) == self.MANY
        assert self.Counting.steps <= 12 * self.MANY

    @staticmethod
    def lines(consume: Any, order: Any, many: int) -> int:
        """How many lines are executed, in both threads, while that many futures are waited for and end."""
        counted, registered = itertools.count(), threading.Event()

        class Last(ConcurrentFuture[Any]):
            def _when_done(self, fn: Any) -> None:
                super()._when_done(fn)
                registered.set()

        futures = [open_future() for _ in range(many - 1)]
        futures.append(Last(uuid4(), concurrent.futures.Future()))

        def trace(frame: Any, event: str, argument: Any) -> Any:
            if event == "line":
                next(counted)
            return trace

        def end_all() -> None:
            assert registered.wait(PATIENCE)
            sys.settrace(trace)
            for future in order(futures):
                end(future, 1)

        ending = threading.Thread(target=end_all)
        ending.start()
        sys.settrace(trace)
        try:
            assert len(set(consume(futures))) == many
        finally:
            sys.settrace(None)
            ending.join()
        return next(counted)

    @pytest.mark.parametrize("order", [list, reversed], ids=["first to last", "last to first"])
    @pytest.mark.parametrize("consume", [as_completed, lambda many: wait(many).done], ids=["as_completed", "wait"])
    @pytest.mark.parametrize("in_task", [False, True], ids=["main thread", "task"])
    def test_pending_futures_take_linear_work(self, consume, order, in_task):
        count, given = task(self.lines), (consume, order, 8000)
        executed = flow(lambda: count.submit(*given).result())() if in_task else count.fn(*given)
        assert executed <= 200 * 8000

    def test_futures_around_something_that_has_no_callbacks_of_its_own_are_waited_for_by_theirs(self):
        """As users wrap what another library gave them."""

        class Reference(WrappedFuture[int]):
            def add_done_callback(self, fn: Any) -> None:
                threading.Timer(0.01, self.arrive, [fn]).start()

            def arrive(self, fn: Any) -> None:
                self._final_state = Completed(data=5)
                fn(self)

            def wait(self, timeout: float | None = None) -> None: ...

            def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> int:
                return 5

        def made() -> Reference:
            return Reference(uuid4(), object())

        assert [each.result() for each in as_completed([made()])] == [5]
        assert len(wait([made()]).done) == 1
        add_one = task(lambda x: x + 1)
        assert flow(lambda: add_one.submit(made()).result())() == 6

    def test_a_pending_future_that_is_waited_for_adds_little_for_the_garbage_collector(self):
        """What it has to look at made 100,000 futures cost twice as much each as 10,000."""
        futures = [open_future() for _ in range(1000)]
        before = len(gc.get_objects())
        assert wait(futures, timeout=0).not_done == set(futures)
        added = len(gc.get_objects()) - before
        assert added <= 2 * len(futures)


class TestFutureList:
    @pins("futures_runners", 22, 23)
    def test_results_stand_in_the_order_of_the_list(self):
        first, second = open_future(), open_future()
        end(second, "second")
        end(first, "first")
        assert FutureList([first, second, first]).result() == ["first", "second", "first"]

    def test_asks_each_distinct_future_once(self):
        asked: list[int] = []

        class Once(Done):
            def result(self, timeout=None, raise_on_failure=True):
                asked.append(1)
                return super().result(timeout, raise_on_failure)

        once = Once(1)
        assert FutureList([once, once]).result() == [1, 1]
        assert asked == [1]

    @pins("futures_runners", 22)
    def test_the_first_failure_raises_while_others_run(self):
        error = ValueError("fast")
        with pytest.raises(ValueError, match="fast"):
            FutureList([open_future(), ended(Failed(data=error))]).result()

    @pins("futures_runners", 18)
    def test_failures_are_given_back_when_asked_for(self):
        error = ValueError("oops")
        futures = FutureList([ended(1), ended(Failed(data=error))])
        assert futures.result(raise_on_failure=False) == [1, error]

    @pins("futures_runners", 17)
    def test_an_executors_error_raises_all_the_same(self):
        broken = open_future()
        broken.wrapped_future.set_exception(RuntimeError("pool"))
        with pytest.raises(RuntimeError, match="pool"):
            FutureList([ended(1), broken]).result(raise_on_failure=False)

    @anywhere
    @pins("futures_runners", 21)
    def test_a_timeout_names_itself(self, where):
        with pytest.raises(TimeoutError, match=r"waiting for all futures to complete within 0\.01 seconds"):
            where(lambda: FutureList([open_future()]).result(timeout=0.01))

    @pins("futures_runners", 19)
    def test_a_timeout_error_of_a_task_is_passed_on(self):
        with pytest.raises(TimeoutError, match="^oops$"):
            FutureList([ended(Failed(data=TimeoutError("oops")))]).result(timeout=5)

    @pins("futures_runners", 19)
    @pytest.mark.parametrize("timeout", [None, 5])
    def test_so_is_the_one_of_a_wait_that_the_task_made(self, timeout):
        with pytest.raises(TimeoutError) as own:
            list(as_completed([open_future()], timeout=0))
        with pytest.raises(TimeoutError, match="unfinished"):
            FutureList([ended(Failed(data=own.value))]).result(timeout=timeout)

    def test_equal_futures_of_one_run_have_one_result(self):
        class Same(Done):
            def __eq__(self, other):
                return isinstance(other, Same)

            def __hash__(self):
                return 1

        assert FutureList([Same(1), Same(1)]).result() == [1, 1]

    @pins("futures_runners", 20)
    def test_the_timeout_covers_the_reading_of_results(self, monkeypatch):
        now = [100.0]
        monkeypatch.setattr("microflow._arrivals.time.monotonic", lambda: now[0])

        class Slow(Done):
            def result(self, timeout=None, raise_on_failure=True):
                now[0] += 1
                return 1

        with pytest.raises(TimeoutError, match=r"within 0\.1 seconds"):
            FutureList([Slow(1)]).result(timeout=0.1)

    @anywhere
    @pins("futures_runners", 106)
    def test_zero_succeeds_if_all_are_done(self, where):
        assert where(lambda: FutureList([ended(1), Done(2)]).result(timeout=0)) == [1, 2]
        with pytest.raises(TimeoutError):
            where(lambda: FutureList([ended(1), open_future()]).result(timeout=0))

    @pins("futures_runners", 24)
    def test_waiting_returns_nothing_and_never_raises(self):
        assert FutureList([ended(Failed()), open_future()]).wait(timeout=0.01) is None  # type: ignore[func-returns-value]
        assert FutureList().result() == []


class Point(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any = 1


class TestContainers:
    @pytest.mark.parametrize(
        ("wrap", "expected"),
        [
            (lambda f: [f, 2], [1, 2]),
            (lambda f: (f,), (1,)),
            (lambda f: {f}, {1}),
            (lambda f: frozenset([f]), frozenset([1])),
            (lambda f: {"k": f}, {"k": 1}),
            (lambda f: {f: "v"}, {1: "v"}),
            (lambda f: OrderedDict(a=[f]), OrderedDict(a=[1])),
            (lambda f: Pair(f), Pair(1)),
            (lambda f: [{"a": (f, {f})}], [{"a": (1, {1})}]),
        ],
    )
    @pins("futures_runners", 33)
    def test_futures_are_found_and_the_kind_of_container_is_kept(self, wrap, expected):
        given = wrap(ended(1))
        resolved = resolve_futures_to_results(given)
        assert (resolved, type(resolved)) == (expected, type(expected))
        states = resolve_futures_to_states(wrap(ended(1)))
        assert type(states) is type(given)

    def test_a_named_tuple_stays_one(self):
        point = Point(ended(1), 2)
        assert resolve_futures_to_results(point) == Point(1, 2)

    @pins("futures_runners", 32)
    def test_without_futures_the_very_object_comes_back(self):
        value = [1, {"a": (2,)}]
        assert resolve_futures_to_states(value) is value

    @pins("futures_runners", 34)
    def test_a_list_of_futures_becomes_a_plain_list(self):
        for resolve in (resolve_futures_to_results, resolve_futures_to_states):
            assert type(resolve(FutureList([ended(1)]))) is list
            assert type(resolve({"a": FutureList([ended(1)])})["a"]) is list
            assert type(resolve(FutureList())) is list

    def test_quote_is_left_alone_and_opaque_not_looked_into(self):
        future = ended(1)
        quoted = quote([future])
        assert resolve_futures_to_results([quoted, ended(2)]) == [quoted, 2]
        assert resolve_futures_to_results([opaque(future)]) == [opaque(1)]
        assert resolve_futures_to_results([opaque([future]), ended(2)]) == [opaque([future]), 2]

    def test_a_result_that_holds_a_future_is_not_looked_into(self):
        inner = ended(1)
        assert resolve_futures_to_results([ended([inner])]) == [[inner]]

    def test_the_first_failure_is_raised_as_itself(self):
        with pytest.raises(ValueError, match="mine"):
            resolve_futures_to_results([ended(1), ended(Failed(data=ValueError("mine")))])


def test_without_a_slot_nothing_is_given_back():
    assert SLOT.get() is None
    assert ended(1).result() == 1
