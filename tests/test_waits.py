# SPDX-License-Identifier: Apache-2.0
"""One text, two ways to wait: ``finish``, the waits, slots, the colour of a run, and the clock."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from contextvars import ContextVar, copy_context
from datetime import datetime, timedelta, timezone

import pytest

from microflow import _waits
from microflow._waits import (
    RUN_IS_ASYNC,
    SLOT,
    AsyncioWaits,
    BlockingWaits,
    Outcome,
    Waits,
    choose_async,
    completion_of,
    dual,
    finish,
    loop_is_running,
    run_coroutine,
    settle,
    slot_given_back,
    to_datetime,
    to_us,
)


async def value_of(value):
    return value


async def suspended():
    await asyncio.sleep(0)


class Thing(Future):
    """A waitable thing: a ``concurrent.futures.Future`` with ``wait``."""

    def wait(self, timeout: float | None = None) -> None:
        self.result(timeout)


class RecordingSlot:
    """A slot that notes what is done with it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def give_back(self, *, blocking: bool = True) -> None:
        self.calls.append("give back" if blocking else "give back without blocking")

    def take_again(self, *, at_once: bool = False) -> None:
        self.calls.append("take again at once" if at_once else "take again")


@pytest.fixture
def slot():
    mine = RecordingSlot()
    token = SLOT.set(mine)
    yield mine
    SLOT.reset(token)


def in_both(body):
    """Run a coroutine function over waits in both ways; gives both values."""
    return finish(body(BlockingWaits())), asyncio.run(body(AsyncioWaits()))


# ------------------------------------------------------------------------------------------------ finish


def test_finish_gives_the_value_of_a_coroutine_that_never_suspends():
    assert finish(value_of(3)) == 3


def test_finish_passes_on_what_the_coroutine_raises_the_very_object():
    error = ValueError("x")

    async def fails():
        raise error

    with pytest.raises(ValueError) as caught:
        finish(fails())
    assert caught.value is error


def test_finish_names_the_coroutine_that_suspends_and_closes_it():
    closed = []

    async def waits_for_a_loop():
        try:
            await asyncio.sleep(0)
        finally:
            closed.append(True)

    with pytest.raises(RuntimeError, match=r"waits_for_a_loop.* waited for an event loop inside a blocking run"):
        finish(waits_for_a_loop())
    assert closed == [True]


def test_finish_works_inside_a_running_loop():
    async def main():
        return finish(value_of(4))

    assert asyncio.run(main()) == 4


# ------------------------------------------------------------------------------------------------ outcome


def test_an_outcome_unwraps_to_its_value_also_when_that_is_none():
    assert Outcome(5).unwrap() == 5
    assert Outcome().unwrap() is None


def test_an_outcome_raises_the_very_error():
    error = KeyError("k")
    with pytest.raises(KeyError) as caught:
        Outcome(error=error).unwrap()
    assert caught.value is error


# ------------------------------------------------------------------------------------------------ the waits


def test_call_gives_value_or_error_as_an_outcome_in_both_ways():
    def fails():
        raise ValueError("no")

    async def body(waits: Waits):
        good, bad = await waits.call(lambda x, *, y: x + y, 1, y=2), await waits.call(fails)
        return good.value, type(bad.error)

    assert in_both(body) == ((3, ValueError), (3, ValueError))


def test_stop_iteration_of_the_user_survives_the_coroutine_around_the_call():
    """PEP 479 would turn it into RuntimeError if it travelled as an exception."""

    def stops():
        raise StopIteration("mine")

    async def body(waits: Waits):
        return str((await waits.call(stops)).error)

    assert in_both(body) == ("mine", "mine")


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_interrupts_are_no_outcome(interrupt):
    def interrupted():
        raise interrupt

    async def body(waits: Waits):
        await waits.call(interrupted)

    with pytest.raises(interrupt):
        finish(body(BlockingWaits()))


def test_a_cancelled_error_is_no_outcome():
    async def body():
        async def cancelled():
            raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await AsyncioWaits().call(cancelled)

    asyncio.run(body())


def test_a_coroutine_that_the_user_hands_back_is_run_to_its_end_in_both_ways():
    async def body(waits: Waits):
        return (await waits.call(value_of, 6)).value

    assert in_both(body) == (6, 6)


def test_a_blocking_run_in_a_running_loop_runs_a_coroutine_on_a_helper_thread():
    async def where():
        await asyncio.sleep(0)
        return threading.current_thread()

    async def main():
        return finish(BlockingWaits().call(where)).value

    helper = asyncio.run(main())
    assert helper is not threading.current_thread()
    assert not helper.is_alive()


@pytest.mark.parametrize("seconds", [0, -1])
def test_no_sleep_at_all_for_a_moment_that_has_passed(seconds, monkeypatch, slot):
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it slept"))

    async def body(waits: Waits):
        await waits.sleep(seconds)

    in_both(body)
    assert slot.calls == []


def test_a_blocking_sleep_gives_the_slot_back(monkeypatch, slot):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    finish(BlockingWaits().sleep(12))
    assert slept == [12]
    assert slot.calls == ["give back", "take again"]


def test_sleep_lets_the_seconds_pass_in_both_ways():
    async def body(waits: Waits):
        before = time.monotonic()
        await waits.sleep(0.02)
        return time.monotonic() - before >= 0.02

    assert in_both(body) == (True, True)


def test_wait_returns_when_the_thing_is_complete_in_both_ways():
    async def body(waits: Waits):
        thing = Thing()
        timer = threading.Timer(0.01, thing.set_result, ["done"])
        timer.start()
        await waits.wait(thing)
        timer.join()
        return thing.done()

    assert in_both(body) == (True, True)


def test_an_async_wait_does_not_block_the_loop():
    async def body():
        thing: Thing = Thing()
        asyncio.get_running_loop().call_soon(thing.set_result, None)  # needs the loop to run
        await AsyncioWaits().wait(thing)

    asyncio.run(body())


def test_block_calls_here_or_in_a_thread_of_the_loop():
    async def body(waits: Waits):
        return await waits.block(threading.current_thread)

    blocking, on_loop = in_both(body)
    assert blocking is threading.current_thread()
    assert on_loop is not threading.current_thread()


# ------------------------------------------------------------------------------------- completion of a thing


def test_completion_of_takes_a_thing_that_is_complete_already():
    async def body():
        thing: Thing = Thing()
        thing.set_result(1)
        await completion_of(thing)

    asyncio.run(body())


def test_completion_of_gives_the_slot_back_and_never_blocks_the_loop_to_have_it_again(slot):
    async def body():
        thing: Thing = Thing()
        asyncio.get_running_loop().call_soon(thing.set_result, None)
        await completion_of(thing)

    asyncio.run(body())
    assert slot.calls == ["give back without blocking", "take again at once"]


def test_a_cancelled_wait_has_its_slot_again(slot):
    async def body():
        waiting = asyncio.ensure_future(completion_of(Thing()))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(body())
    assert slot.calls == ["give back without blocking", "take again at once"]


def test_a_thing_that_completes_after_the_loop_was_closed_is_ignored():
    thing: Thing = Thing()

    async def body():
        waiting = asyncio.ensure_future(completion_of(thing))
        await asyncio.sleep(0)
        waiting.cancel()

    asyncio.run(body())
    thing.set_result(1)  # the callback of the wait still hangs on it
    assert thing.done()


def test_a_thing_that_calls_back_twice_settles_once():
    class Twice(Thing):
        def add_done_callback(self, fn):
            fn(self)
            fn(self)

    asyncio.run(completion_of(Twice()))


# ------------------------------------------------------------------------------------- settle, run_coroutine


def test_settle_takes_a_value_and_awaits_what_can_be_awaited():
    async def body():
        return await settle(1), await settle(value_of(2))

    assert finish(body()) == (1, 2)


def test_run_coroutine_carries_value_error_and_interrupt_out_of_the_helper_thread():
    async def fails(error):
        await asyncio.sleep(0)
        raise error

    async def main():
        assert run_coroutine(value_of(1)) == 1
        for error in (ValueError("v"), KeyboardInterrupt(), SystemExit(3)):
            with pytest.raises(type(error)) as caught:
                run_coroutine(fails(error))
            assert caught.value is error

    asyncio.run(main())


def test_run_coroutine_sees_the_context_of_its_caller_in_both_ways():
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("mine")

    async def read():
        return variable.get()

    async def main():
        return run_coroutine(read())

    assert run_coroutine(read()) == "mine"
    assert asyncio.run(main()) == "mine"


def test_run_coroutine_on_a_helper_gives_the_slot_back_meanwhile(slot):
    async def main():
        run_coroutine(value_of(1))

    asyncio.run(main())
    assert slot.calls == ["give back", "take again at once"]  # a loop must not wait for its slot as well


# ------------------------------------------------------------------------------------- slots, colour


def test_a_slot_is_taken_again_also_when_the_block_raises(slot):
    with pytest.raises(ValueError), slot_given_back():
        raise ValueError
    assert slot.calls == ["give back", "take again"]


def test_without_a_slot_nothing_is_given_back():
    with slot_given_back():
        assert SLOT.get() is None


def test_whether_a_loop_runs_in_this_thread():
    async def main():
        here = loop_is_running()
        elsewhere = await AsyncioWaits().block(loop_is_running)
        return here, elsewhere

    assert not loop_is_running()
    assert asyncio.run(main()) == (True, False)


def test_without_asyncio_no_loop_runs(monkeypatch):
    monkeypatch.delitem(_waits.sys.modules, "asyncio.events")
    assert not loop_is_running()


def coloured(colour: bool | None, *args):
    """``choose_async`` in a run of this colour."""

    def choose():
        RUN_IS_ASYNC.set(colour)
        return choose_async(*args)

    return copy_context().run(choose)


def test_the_argument_decides_before_the_run_and_the_run_before_the_loop():
    async def main():
        return coloured(False), coloured(None), coloured(True, True)

    assert coloured(True) is True
    assert coloured(None) is False
    assert coloured(False, False) is True
    assert coloured(True, True) is False
    assert asyncio.run(main()) == (False, True, False)


def test_dual_calls_now_or_hands_out_a_coroutine():
    async def main():
        return await dual(lambda: 2)  # type: ignore[misc]  # on a loop it is awaitable

    assert dual(lambda: 1) == 1
    assert asyncio.run(main()) == 2


# ------------------------------------------------------------------------------------------------ the clock


def test_moments_go_to_microseconds_and_back_without_loss():
    for moment in (datetime(1970, 1, 1, tzinfo=timezone.utc), datetime(2025, 11, 21, 3, 4, 5, 678901, timezone.utc)):
        assert to_datetime(to_us(moment)) == moment
    assert to_datetime(None) is None
    assert to_us(None) is None


def test_a_naive_moment_is_utc_and_another_zone_is_converted():
    assert to_us(datetime(1970, 1, 1, 0, 0, 1)) == 1_000_000
    assert to_us(datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))) == 0


def test_the_clock_is_the_wall_clock_in_microseconds():
    before = time.time_ns() // 1000
    assert before <= _waits.now_us() <= time.time_ns() // 1000
