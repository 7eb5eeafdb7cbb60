# SPDX-License-Identifier: Apache-2.0
"""Generator tasks, blocking and async: items as they are made, one end on record, nothing of ours in the consumer."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from microflow import flow, task
from microflow._arguments import quote
from microflow.client.orchestration import current_client
from microflow.context import FlowRunContext, TaskRunContext, get_run_context
from microflow.exceptions import Pause
from microflow.flow_runs import asuspend_flow_run, rerun, suspend_flow_run
from microflow.results import ResultStore
from microflow.settings import temporary_settings
from microflow.states import Failed
from microflow.task_engine import TaskRunTimeoutError, run_generator_task_async, run_generator_task_sync, run_task
from microflow.transactions import get_transaction
from tests.behaviour_support import pins
from tests.support import (
    PATIENCE,
    Colour,
    Witness,
    both,
    death_after,
    fake_waits,
    flow_run_ids,
    memory_home,
    run,
    task_ids,
    task_states,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# what is tested of time limits needs the process's one alarm for itself
pytestmark = pytest.mark.timeout(60, method="thread")


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


def made(colour: Colour, body: Callable[..., Any], **options: Any) -> Any:
    """The generator task of this colour whose text is the generator function `body`."""

    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        inner = body(*args, **kwargs)
        try:
            for item in inner:
                if item is NAP:
                    await asyncio.sleep(PATIENCE)
                else:
                    yield item
        finally:
            inner.close()

    def blocking(*args: Any, **kwargs: Any) -> Any:
        inner = body(*args, **kwargs)
        try:
            while True:
                try:
                    item = next(inner)
                except StopIteration as end:
                    return end.value
                if item is NAP:
                    time.sleep(PATIENCE)
                else:
                    yield item
        finally:
            inner.close()

    function: Any = coroutine if colour.isasync else blocking
    function.__name__ = function.__qualname__ = body.__name__
    function.__signature__ = inspect.signature(body)
    return task(**{"name": body.__name__, **options})(function)


NAP = object()
"""An item that stands for a long wait inside of the generator."""


class Consumer:
    """Steps a generator of either colour with the same calls, on one loop of its own."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        self.isasync = hasattr(generator, "__anext__")
        self.loop = asyncio.new_event_loop() if self.isasync else None

    def _do(self, blocking: str, coroutine: str, *args: Any) -> Any:
        if self.loop is None:
            return getattr(self.generator, blocking)(*args)
        return self.loop.run_until_complete(getattr(self.generator, coroutine)(*args))

    def next(self) -> Any:
        return self._do("__next__", "__anext__")

    def throw(self, error: BaseException) -> Any:
        return self._do("throw", "athrow", error)

    def send(self, value: Any) -> Any:
        return self._do("send", "asend", value)

    def close(self) -> None:
        self._do("close", "aclose")

    def rest(self) -> list[Any]:
        found = []
        try:
            while True:
                found.append(self.next())
        except (StopIteration, StopAsyncIteration):
            return found

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.loop is not None:
            try:
                self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            finally:
                self.loop.close()


def states_of(run_id: Any) -> list[str]:
    return [state.name for state in current_client().tasks.states(run_id)]


def own_id(seen: list[Any]) -> None:
    context = TaskRunContext.get()
    assert context is not None
    seen.append(context.task_run.id)


DELIVERED: list[int] = []


@task
def suspends_its_flow(run_id):
    suspend_flow_run(flow_run_id=run_id)
    yield 1


@task
async def suspends_its_flow_async(run_id):
    await asuspend_flow_run(flow_run_id=run_id)
    yield 1


@flow
def suspending():
    context = FlowRunContext.get()
    assert context is not None
    DELIVERED.extend(suspends_its_flow(context.flow_run.id))


@flow
async def suspending_async():
    context = FlowRunContext.get()
    assert context is not None
    async for item in suspends_its_flow_async(context.flow_run.id):
        DELIVERED.append(item)


class TestItems:
    @both
    def test_nothing_happens_before_the_first_item_is_asked_for(self, colour: Colour):
        seen: list[Any] = []

        def numbers():
            own_id(seen)
            yield 1
            seen.append("between")
            yield 2

        with Consumer(made(colour, numbers)()) as consumer:
            assert seen == []
            assert consumer.next() == 1
            assert states_of(seen[0]) == ["Pending", "Running"]
            assert seen[1:] == []
            assert consumer.rest() == [2]
        assert states_of(seen[0]) == ["Pending", "Running", "Completed"]

    @pins("task_engine", 150)
    def test_the_return_value_is_that_of_the_function(self):
        @task
        def numbers():
            yield 1
            return "value"

        generator = numbers()
        assert next(generator) == 1
        with pytest.raises(StopIteration) as end:
            next(generator)
        assert end.value.value == "value"
        with pytest.raises(StopIteration):
            next(generator)

    @both
    @pins("task_engine", 151)
    def test_a_state_cannot_be_had_which_is_said_at_the_first_item(self, colour: Colour):
        def numbers():
            yield 1

        with Consumer(made(colour, numbers)(return_state=True)) as consumer:
            with pytest.raises(ValueError, match="return_state"):
                consumer.next()

    @both
    def test_parameters_are_resolved_and_a_failed_upstream_yields_nothing(self, colour: Colour):
        def numbers(value):
            yield value

        from microflow.states import Completed

        with Consumer(made(colour, numbers)(Completed(data=5))) as consumer:
            assert consumer.rest() == [5]
        with Consumer(made(colour, numbers)(Failed())) as consumer:
            assert consumer.rest() == []

    @both
    def test_the_entry_points_can_be_called_by_themselves(self, colour: Colour):
        def numbers(x):
            yield x

        generator_task = made(colour, numbers)
        entry: Any = run_generator_task_async if colour.isasync else run_generator_task_sync
        for generator in (entry(generator_task, parameters={"x": 1}), run_task(generator_task, parameters={"x": 1})):
            with Consumer(generator) as consumer:
                assert consumer.rest() == [1]

    @both
    def test_items_may_be_awaitable_or_tuples(self, colour: Colour):
        class Item:
            def __await__(self):
                raise AssertionError("nobody asked for it")

        item = Item()

        def items():
            yield item
            yield (1, 2)

        with Consumer(made(colour, items)()) as consumer:
            assert consumer.rest() == [item, (1, 2)]

    @both
    def test_what_is_sent_is_ignored(self, colour: Colour):
        received: list[Any] = []

        def numbers():
            received.append((yield 1))
            yield 2

        with Consumer(made(colour, numbers)()) as consumer:
            consumer.next()
            assert consumer.send("value") == 2
        assert received == [None]

    @both
    def test_a_submitted_one_gives_its_items_as_a_list(self, colour: Colour):
        def numbers(count):
            yield from range(count)

        generator_task = made(colour, numbers)

        @flow
        def main():
            return generator_task.submit(3).result(), generator_task.map([1, 2]).result()

        assert main() == ([0, 1, 2], [[0], [0, 1]])
        assert task_states("numbers") == [["Pending", "Running", "Completed"]] * 3


class TestFailures:
    @both
    @pins("task_engine", 152)
    def test_a_retry_begins_anew_and_yields_everything_again(self, colour: Colour):
        seen: list[Any] = []
        failures: list[str] = []

        def numbers():
            own_id(seen)
            yield 1
            yield 2
            raise ValueError("no")

        generator_task = made(colour, numbers, retries=2, on_failure=[lambda t, r, state: failures.append(state.name)])
        with Consumer(generator_task()) as consumer:
            items = [consumer.next() for _ in range(6)]
            with pytest.raises(ValueError, match="no"):
                consumer.next()
        assert items == [1, 2, 1, 2, 1, 2]
        assert states_of(seen[0]) == ["Pending", "Running", "Retrying", "Retrying", "Failed"]
        assert failures == ["Failed"]

    @both
    @pins("task_engine", 153)
    def test_the_normal_end_is_no_failure(self, colour: Colour):
        witness = Witness()

        def numbers():
            witness.saw("run")
            yield 1

        with Consumer(made(colour, numbers, retries=3)()) as consumer:
            assert consumer.rest() == [1]
        assert witness["run"] == 1

    @both
    def test_a_delayed_retry_is_slept(self, colour: Colour, monkeypatch):
        slept = fake_waits(monkeypatch)
        calls: list[int] = []

        def numbers():
            calls.append(1)
            yield len(calls)
            if len(calls) == 1:
                raise ValueError("again")

        with Consumer(made(colour, numbers, retries=1, retry_delay_seconds=60)()) as consumer:
            assert consumer.rest() == [1, 2]
        assert slept == pytest.approx([60], abs=0.5)

    @both
    def test_what_the_consumer_throws_fails_the_attempt(self, colour: Colour):
        seen: list[Any] = []

        def numbers():
            own_id(seen)
            try:
                yield 1
            finally:
                seen.append("finally")

        error = ValueError("thrown")
        with Consumer(made(colour, numbers)()) as consumer:
            consumer.next()
            with pytest.raises(ValueError) as caught:
                consumer.throw(error)
            assert caught.value is error
        assert states_of(seen[0]) == ["Pending", "Running", "Failed"]
        assert seen[1:] == ["finally"]

    @both
    def test_an_interrupt_inside_of_it_is_a_crash(self, colour: Colour):
        seen: list[Any] = []

        def numbers():
            own_id(seen)
            yield 1
            raise KeyboardInterrupt

        generator = made(colour, numbers)()
        if colour.isasync:

            async def consume():
                with pytest.raises(KeyboardInterrupt):
                    async for _ in generator:
                        pass

            asyncio.run(consume())
        else:
            with pytest.raises(KeyboardInterrupt):
                list(generator)
        assert states_of(seen[0]) == ["Pending", "Running", "Crashed"]


class TestClosing:
    @both
    @pins("task_engine", 156)
    def test_who_wants_no_more_completes_the_run_once_after_its_finally(self, colour: Colour):
        """Defect of the reference: closing an async one fails its run, or leaves it in Retrying."""
        seen: list[Any] = []
        options: dict[str, Any] = {
            "on_completion": [lambda t, r, state: seen.append(f"hook {state.name}")],
            "on_failure": [lambda t, r, state: seen.append(f"hook {state.name}")],
            "on_rollback": [lambda txn: seen.append("rollback")],
            "on_commit": [lambda txn: seen.append("commit")],
            "retries": 3,
        }

        def numbers():
            own_id(seen)
            try:
                yield 1
                yield 2
            finally:
                seen.append("finally")

        with Consumer(made(colour, numbers, **options)()) as consumer:
            assert consumer.next() == 1
            consumer.close()
        assert states_of(seen[0]) == ["Pending", "Running", "Completed", "RolledBack"]
        assert seen[1:] == ["finally", "rollback", "hook Completed"]

    @both
    def test_what_its_finally_raises_is_the_runs_failure(self, colour: Colour):
        seen: list[Any] = []

        def numbers():
            own_id(seen)
            try:
                yield 1
            finally:
                raise ValueError("in finally")

        with Consumer(made(colour, numbers)()) as consumer:
            consumer.next()
            with pytest.raises(ValueError, match="in finally"):
                consumer.close()
        assert states_of(seen[0]) == ["Pending", "Running", "Failed"]

    def test_a_break_and_garbage_collection_close_it_too(self):
        seen: list[Any] = []

        @task
        def numbers():
            own_id(seen)
            yield 1
            yield 2

        for _ in numbers():
            break
        gc.collect()
        assert states_of(seen[0])[:3] == ["Pending", "Running", "Completed"]

    def test_a_loop_that_ends_closes_what_it_has_of_async_ones(self):
        seen: list[Any] = []

        @task
        async def numbers():
            own_id(seen)
            yield 1
            yield 2

        async def consume():
            async for _ in numbers():
                break

        asyncio.run(consume())
        assert states_of(seen[0])[:3] == ["Pending", "Running", "Completed"]

    @both
    def test_one_that_was_never_asked_for_an_item_leaves_no_run(self, colour: Colour):
        def numbers():
            yield 1

        @colour.flow
        def main():
            generator = made(colour, numbers)()
            if not colour.isasync:
                generator.close()

        colour.run(main)
        assert task_states("numbers") == []


class TestContext:
    @both
    def test_nothing_of_the_generator_is_seen_by_the_consumer(self, colour: Colour):
        seen: list[Any] = []
        made_by_consumer: list[Any] = []
        inner = task(lambda: made_by_consumer.append(TaskRunContext.get().task_run.task_inputs))  # type: ignore[union-attr,func-returns-value]

        def numbers():
            for _ in range(2):
                context = get_run_context()
                assert isinstance(context, TaskRunContext)
                assert get_transaction() is not None
                seen.append(context.task_run.id)
                yield 1

        with Consumer(made(colour, numbers, log_prints=True)()) as consumer:
            consumer.next()
            assert TaskRunContext.get() is None
            assert get_transaction() is None
            inner()
            consumer.next()
        assert seen[0] == seen[1]
        assert made_by_consumer == [{}]  # no parent

    def test_generators_may_be_interleaved(self):
        @task
        def numbers(start):
            for number in range(3):
                context = TaskRunContext.get()
                assert context is not None
                yield start + number, context.parameters["start"]

        first, second = numbers(0), numbers(10)
        assert [next(first), next(second), next(first), next(second)] == [(0, 0), (10, 10), (1, 0), (11, 10)]
        first.close()
        second.close()

    def test_one_may_be_stepped_by_several_threads(self):
        @task
        def numbers():
            yield 1
            yield 2

        generator, found = numbers(), list[Any]()
        found.append(next(generator))
        thread = threading.Thread(target=lambda: found.extend(generator))
        thread.start()
        thread.join()
        assert found == [1, 2]

    def test_tasks_that_the_generator_calls_are_its_children(self):
        inputs: list[Any] = []

        @task
        def child():
            context = TaskRunContext.get()
            assert context is not None
            inputs.append(context.task_run.task_inputs["__parents__"])

        @task
        def numbers():
            context = TaskRunContext.get()
            assert context is not None
            child()
            yield context.task_run.id

        (own,) = list(numbers())
        assert [each.id for (each,) in inputs] == [own]


class TestTime:
    @both
    @pins("task_engine", 154)
    def test_a_generator_that_takes_too_long_times_out_at_the_next_item(self, colour: Colour):
        seen: list[Any] = []

        def numbers():
            own_id(seen)
            yield 1
            yield NAP

        with Consumer(made(colour, numbers, timeout_seconds=0.1)()) as consumer:
            assert consumer.next() == 1
            with pytest.raises(TaskRunTimeoutError):
                consumer.next()
        assert states_of(seen[0]) == ["Pending", "Running", "TimedOut"]

    @both
    def test_the_consumers_time_counts_and_the_consumer_is_not_interrupted(self, colour: Colour):
        slow = task(lambda: time.sleep(0.1))  # blocking user code of another run, while the limit runs out

        def numbers():
            yield 1
            yield 2

        with Consumer(made(colour, numbers, timeout_seconds=0.05)()) as consumer:
            assert consumer.next() == 1
            slow()
            with pytest.raises(TaskRunTimeoutError):
                consumer.next()


class TestStores:
    @both
    def test_it_is_run_whatever_stands_under_its_key_and_is_not_called_cached(self, colour: Colour, tmp_path):
        """The reference names its end Cached, though it ran."""
        witness, seen = Witness(), list[Any]()

        def numbers():
            own_id(seen)
            witness.saw("run")
            yield 1

        with temporary_settings(local_storage_path=str(tmp_path)):
            ResultStore().write("there", key="key")
            for _ in range(2):
                with Consumer(made(colour, numbers, result_storage_key="key")()) as consumer:
                    assert consumer.rest() == [1]
        assert witness["run"] == 2
        assert states_of(seen[-1]) == ["Pending", "Running", "Completed"]


class TestFlowRuns:
    @pins("task_engine", 155)
    @both
    def test_a_suspended_flow_gets_no_item_any_more(self, colour: Colour):
        DELIVERED.clear()
        with pytest.raises(Pause):
            run(suspending_async() if colour.isasync else suspending())
        assert DELIVERED == []

    @both
    @pins("task_engine", 61)
    def test_a_call_with_an_item_depends_on_the_run_that_yielded_it_and_has_it_as_a_parent(self, colour: Colour):
        taken: list[Any] = []
        take = colour.task(lambda x: taken.append(TaskRunContext.get().task_run.task_inputs), name="take")  # type: ignore[union-attr]
        things = made(colour, lambda: (yield "a thing that only one run yields"), name="things")
        if colour.isasync:

            @flow
            async def main():
                async for item in things():
                    await take(item)

        else:

            @flow
            def main():
                for item in things():
                    take(item)

        run(main())
        (own,) = task_ids("<lambda>")[:1]
        (inputs,) = taken
        assert [str(each.id) for each in inputs["x"]] == [own]
        assert [str(each.id) for each in inputs["__parents__"]] == [own]

    @both
    def test_a_re_execution_consumes_its_items_anew(self, colour: Colour):
        """Items are not in the log, so that a flow which loops over them needs them again."""
        witness, found = Witness(), list[list[int]]()

        def numbers():
            witness.saw("run")
            yield from (1, 2)

        generator_task = made(colour, numbers)
        if colour.isasync:

            @flow
            async def main():
                found.append([item async for item in generator_task()])
                return quote(len(found))

        else:

            @flow
            def main():
                found.append(list(generator_task()))
                return quote(len(found))

        with death_after(4) as death:
            run(main())
        assert death.came
        (run_id,) = flow_run_ids()
        assert task_states("numbers") == [["Pending", "Running", "Completed"]]
        run(rerun(main, run_id))
        assert found == [[1, 2], [1, 2]]
        assert task_states("numbers") == [["Pending", "Running", "Completed", "Running", "Completed"]]
