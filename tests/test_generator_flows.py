# SPDX-License-Identifier: Apache-2.0
"""Flows that yield: items stream while the run goes on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from typing import Any

import pytest

from microflow import flow, task
from microflow.context import FlowRunContext
from microflow.exceptions import CancelledRun, FlowRunTimeoutError
from microflow.flow_runs import cancel_flow_run

from .behaviour_support import pins
from .pause_support import own_run_id
from .support import PATIENCE, flow_run_ids, flow_states, fold, memory_home

pytestmark = pytest.mark.timeout(60, method="thread")  # the alarm is the flows'


@pytest.fixture(autouse=True)
def home_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    memory_home(monkeypatch)


class Consumer:
    """Consumes generator flows of one colour: both forms of a test have one body."""

    def __init__(self, isasync: bool) -> None:
        self.isasync = isasync

    def __repr__(self) -> str:
        return "async" if self.isasync else "sync"

    def flow(self, body: Any, **options: Any) -> Any:
        """A generator flow of this colour over a plain generator function."""
        if not self.isasync:
            return flow(**options)(body)

        async def coroutine(*args: Any) -> Any:
            generator = body(*args)
            try:
                for item in generator:
                    yield item
            finally:
                generator.close()

        coroutine.__name__ = body.__name__
        return flow(**options)(coroutine)

    def take(self, items: Any, most: int | None = None, into: list[Any] | None = None) -> list[Any]:
        """The items, at most so many; the generator is closed then."""
        taken: list[Any] = [] if into is None else into
        if not self.isasync:
            for item in items:
                taken.append(item)
                if len(taken) == most:
                    break
            items.close()
            return taken

        async def main() -> None:
            async with contextlib.aclosing(items):
                async for item in items:
                    taken.append(item)
                    if len(taken) == most:
                        break

        asyncio.run(main())
        return taken


both = pytest.mark.parametrize("consumer", [Consumer(False), Consumer(True)], ids=repr)


@pins("flows", 93)
@both
def test_items_stream_while_the_run_is_running(consumer):
    seen: list[str] = []

    def numbers() -> Any:
        for number in range(3):
            seen.append(f"made {number}")
            yield number

    main = consumer.flow(numbers)
    items = main()
    assert flow_run_ids() == []

    if consumer.isasync:

        async def consume() -> None:
            async for number in items:
                seen.append(f"taken {number} {flow_states()[-1]}")

        asyncio.run(consume())
    else:
        for number in items:
            seen.append(f"taken {number} {flow_states()[-1]}")
    assert seen == [text for n in range(3) for text in (f"made {n}", f"taken {n} Running")]
    assert flow_states() == ["Pending", "Running", "Completed"]


def test_what_a_generator_flow_returns_is_the_value_of_its_stop():
    @flow
    def main() -> Any:
        yield 1
        return "the end"

    items = main()
    assert next(items) == 1
    with pytest.raises(StopIteration) as stop:
        next(items)
    assert stop.value.value == "the end"
    assert fold().flow_run.state.read_result() == "the end"  # type: ignore[union-attr]  # it has ended


@pins("flows", 94)
@both
def test_a_generator_flow_cannot_return_its_state(consumer):
    def body() -> Any:
        yield 1

    items = consumer.flow(body)(return_state=True)
    with pytest.raises(ValueError, match="cannot return its state"):
        consumer.take(items)
    assert flow_run_ids() == []


@pins("flows", 95)
@both
def test_what_the_body_raises_is_raised_where_the_next_item_is_asked_for(consumer):
    def body() -> Any:
        yield 1
        raise ValueError("no more")

    taken: list[Any] = []
    with pytest.raises(ValueError, match="no more"):
        consumer.take(consumer.flow(body)(), into=taken)
    assert taken == [1]
    assert flow_states()[-1] == "Failed"


@pins("flows", 96)
@both
def test_a_retry_yields_the_items_again(consumer):
    def body() -> Any:
        yield 1
        yield 2
        raise ValueError("again")

    taken: list[Any] = []
    with pytest.raises(ValueError, match="again"):
        consumer.take(consumer.flow(body, retries=2)(), into=taken)
    assert taken == [1, 2, 1, 2, 1, 2]


@pins("flows", 97)
@both
def test_the_end_of_a_generator_is_no_failure(consumer):
    def body() -> Any:
        yield 1

    assert consumer.take(consumer.flow(body, retries=3)()) == [1]
    assert flow_states() == ["Pending", "Running", "Completed"]


@pins("flows", 98)
def test_a_time_limit_interrupts_the_body_between_its_items():
    @flow(timeout_seconds=0.1)
    def main() -> Any:
        yield 1
        time.sleep(PATIENCE)
        yield 2

    items = main()
    assert next(items) == 1
    with pytest.raises(FlowRunTimeoutError):
        next(items)
    assert flow_states()[-1] == "TimedOut"


@both
def test_the_time_of_the_consumer_counts_but_it_is_not_interrupted(consumer):
    def body() -> Any:
        yield 1
        yield 2

    items = consumer.flow(body, timeout_seconds=0.05)()
    taken = []

    async def consume_async() -> None:
        async for item in items:
            taken.append(item)
            await asyncio.sleep(0.1)
            taken.append("slept")

    def consume() -> None:
        for item in items:
            taken.append(item)
            time.sleep(0.1)
            taken.append("slept")

    with pytest.raises(FlowRunTimeoutError):
        asyncio.run(consume_async()) if consumer.isasync else consume()
    assert taken == [1, "slept"]


@pins("flows", 99)
@both
def test_a_consumer_that_stops_early_completes_the_run_once(consumer):
    ended: list[str] = []

    def body() -> Any:
        try:
            yield 1
            yield 2
        finally:
            ended.append("finally")

    hooks: list[Any] = []
    main = consumer.flow(body, on_completion=[lambda *args: hooks.append(args[2].name)])
    assert consumer.take(main(), most=1) == [1]
    assert ended == ["finally"]
    assert flow_states() == ["Pending", "Running", "Completed"]
    assert hooks == ["Completed"]


def test_a_generator_flow_that_is_dropped_completes_too():
    @flow
    def main() -> Any:
        yield 1
        yield 2

    next(main())
    gc.collect()
    assert flow_states() == ["Pending", "Running", "Completed"]


def test_what_is_sent_and_thrown_reaches_the_body():
    @flow
    def main() -> Any:
        sent = yield 1
        try:
            yield sent
        except KeyError as thrown:
            yield repr(thrown)

    items = main()
    assert next(items) == 1
    assert items.send("a") == "a"
    assert items.throw(KeyError("b")) == "KeyError('b')"
    items.close()


@both
def test_the_run_is_current_in_its_body_and_not_in_its_consumer(consumer):
    @task
    def double(number: int) -> int:
        return 2 * number

    def body() -> Any:
        assert FlowRunContext.get() is not None
        yield double(1)
        assert FlowRunContext.get() is not None
        yield double.submit(2).result()

    main = consumer.flow(body)
    taken = []

    async def consume() -> None:
        async for item in main():
            assert FlowRunContext.get() is None
            taken.append(item)

    if consumer.isasync:
        asyncio.run(consume())
    else:
        for item in main():
            assert FlowRunContext.get() is None
            taken.append(item)
    assert taken == [2, 4]
    assert len(fold().tasks) == 2


def test_a_generator_subflow_streams_into_its_parent():
    @flow
    def child() -> Any:
        yield 1
        yield 2

    @flow
    def parent() -> int:
        return sum(child())

    assert parent() == 3
    assert flow_states(flow_run_ids("child")[0])[-1] == "Completed"


def test_a_cancelled_generator_flow_stops_at_its_next_item():
    @flow
    def main() -> Any:
        yield own_run_id()
        yield 2

    items = main()
    cancel_flow_run(next(items))
    with pytest.raises(CancelledRun):
        next(items)
    assert flow_states()[-2:] == ["Cancelling", "Cancelled"]


def test_many_async_generators_at_once_do_not_mix_their_runs():
    @flow
    async def main(number: int) -> Any:
        for _ in range(3):
            await asyncio.sleep(0)
            context = FlowRunContext.get()
            assert context is not None
            yield context.parameters["number"]

    async def consume(number: int) -> list[int]:
        return [item async for item in main(number)]

    async def everybody() -> list[list[int]]:
        return await asyncio.gather(*(consume(number) for number in range(10)))

    assert asyncio.run(everybody()) == [[number] * 3 for number in range(10)]


def test_a_cancelled_consumer_crashes_the_run():
    """The asyncio task that consumes is cancelled while the body waits."""

    @flow
    async def main() -> Any:
        yield 1
        await asyncio.sleep(PATIENCE)
        yield 2

    async def consume() -> None:
        async for _ in main():
            pass

    async def outer() -> None:
        consuming = asyncio.ensure_future(consume())
        await asyncio.sleep(0.05)
        consuming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consuming

    asyncio.run(outer())
    assert flow_states()[-1] == "Crashed"
