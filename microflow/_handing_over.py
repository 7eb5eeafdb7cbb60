# SPDX-License-Identifier: Apache-2.0
"""A run that hands things to its caller while it goes on: how generator flows and tasks yield.

Goal: the life of a run stays one coroutine, whether its body returns once or yields many times.

The rule: the coroutine *suspends* where the body yields, by awaiting :func:`hand_over`, and whoever drives the
coroutine takes the item out of the suspension and yields it. Blocking runs suspend for nothing else, so a plain loop
drives them (:func:`handed_over`); what an asyncio run suspends for besides is passed through to the loop
(:func:`handed_over_async`). What the consumer sends or throws arrives where the coroutine was suspended; ``close()`` as
Closed.

Each step runs in the run's own context, so that a run which is suspended is not the current one of its consumer.
"""

from __future__ import annotations

from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator


class Closed(BaseException):
    """The consumer wants no more. Not GeneratorExit, which Python does not throw into what a coroutine awaits, but
    closes it: the run could not end in its own way."""


class _Item:
    """What is handed over, for the driver to recognise."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self)


async def hand_over(value: Any) -> Any:
    """Give `value` to the consumer; gives what the consumer sends when it wants the next one."""
    return await _Item(value)


class _Passing:
    """Suspends for what somebody else's coroutine suspended for."""

    __slots__ = ("thing",)

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self.thing)


_ENDED = object()


def _step(context: Context, step: Callable[[Any], Any], given: Any) -> Any:
    """What the coroutine suspends for next; ``_ENDED`` when it is done."""

    def run() -> Any:
        try:
            return step(given)
        except StopIteration:
            return _ENDED

    return context.run(run)


def handed_over(begin: Callable[[], Coroutine[Any, Any, None]], outcome: Callable[[], Any]) -> Generator[Any, Any, Any]:
    """The items of a blocking run. Nothing happens before the first is asked for; the generator's return value is what
    `outcome` gives, or raises, when the run has ended."""
    context = copy_context()
    coroutine = context.run(begin)
    thing = _step(context, coroutine.send, None)
    try:
        while thing is not _ENDED:
            assert isinstance(thing, _Item), f"a blocking run waited for {thing!r}"
            try:
                given = yield thing.value
            except GeneratorExit:
                if _step(context, coroutine.throw, Closed()) is _ENDED:
                    outcome()  # raises what the body raised while it was closed
                raise
            except BaseException as thrown:  # the body's matter
                thing = _step(context, coroutine.throw, thrown)
            else:
                thing = _step(context, coroutine.send, given)
    finally:
        coroutine.close()
    return outcome()


async def handed_over_async(
    begin: Callable[[], Coroutine[Any, Any, None]], outcome: Callable[[], Any]
) -> AsyncGenerator[Any, Any]:
    """The items of a run on an event loop. `outcome` raises what the run failed with."""
    context = copy_context()
    coroutine = context.run(begin)
    thing = _step(context, coroutine.send, None)
    closing: BaseException | None = None
    try:
        while thing is not _ENDED:
            given: Any = None
            try:
                if isinstance(thing, _Item):
                    given = yield thing.value
                else:
                    given = await _Passing(thing)
            except BaseException as thrown:  # the body's matter
                if isinstance(thing, _Item) and _ends_the_consumer(thrown):
                    closing, thrown = thrown, Closed()
                thing = _step(context, coroutine.throw, thrown)
            else:
                thing = _step(context, coroutine.send, given)
    finally:
        coroutine.close()
    outcome()
    if closing is not None:
        raise closing


def _ends_the_consumer(thrown: BaseException) -> bool:
    """Whether nobody is there any more to consume: closing, and the cancellation of that when the loop itself ends."""
    return isinstance(thrown, GeneratorExit) or type(thrown).__name__ == "CancelledError"
