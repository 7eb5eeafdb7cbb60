# SPDX-License-Identifier: Apache-2.0
"""Runs that yield: how a consumer steps them, blocking or on a loop.

Goal: the life of a generator run is one ``async`` generator over *Waits*, like that of any other run, and what it sets
(context variables: the current run, its transaction, its prints) is never seen by the code that consumes it.

What does not work: a generator's frame has no context of its own. What it sets between two yields stays set in whoever
called ``next``, and what it resets may be somebody else's.

The rule: each step of the body runs in one copy of the context, made at the first step, whoever steps it and from
where. The blocking form steps by :func:`~._waits.finish`; the other drives each step's coroutine by hand, since an
asyncio task cannot change its context.

The protocol of a body: it yields items, and is sent None for the next one, or :data:`CLOSE` when the consumer does not
want more: then it ends like any other, so that closing can wait and its run ends on record. What a consumer throws is
raised at the yield.
"""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from ._waits import finish, first_step

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
    from contextvars import Context

    Body = AsyncGenerator[Any, Any]
    Begin = Callable[[], tuple[Body, Callable[[], Any]]]

#: sent to a body in place of a request for the next item
CLOSE = object()


def stream(begin: Begin) -> Generator[Any, None, Any]:
    """The blocking consumer's generator. `begin` is called when the first item is asked for, and gives the body and
    what is called when that has ended: it gives the return value, or raises."""
    context = copy_context()
    body, result = context.run(begin)
    step: Any = first_step(body)
    while True:
        try:
            item = context.run(finish, step)
        except StopAsyncIteration:
            return result()
        try:
            yield item
        except GeneratorExit:
            try:
                context.run(finish, body.asend(CLOSE))
            except StopAsyncIteration:
                result()
            return None
        except BaseException as error:  # what the consumer throws is the body's matter, whatever it is
            step = body.athrow(error)
        else:
            step = body.asend(None)


async def astream(begin: Begin) -> AsyncGenerator[Any, None]:
    """The same for a consumer on a loop. An async generator has no return value."""
    context = copy_context()
    body, result = context.run(begin)
    step: Any = first_step(body)
    while True:
        try:
            item = await _Within(context, step)
        except StopAsyncIteration:
            result()
            return
        try:
            yield item
        except BaseException as error:  # what the consumer throws is the body's matter, but for what ends the consumer
            if not _ends_the_consumer(error):
                step = body.athrow(error)
                continue
            try:
                await _Within(context, body.asend(CLOSE))
            except StopAsyncIteration:
                result()
            raise
        step = body.asend(None)


def _ends_the_consumer(error: BaseException) -> bool:
    """Whether nobody is there any more to consume: closing, and the cancellation of that when the loop itself ends."""
    return isinstance(error, GeneratorExit) or type(error).__name__ == "CancelledError"


class _Within:
    """Awaits something in a context that is not the asyncio task's own: each of its steps runs there."""

    __slots__ = ("_awaitable", "_context")

    def __init__(self, context: Context, awaitable: Awaitable[Any]) -> None:
        self._context = context
        self._awaitable = awaitable

    def __await__(self) -> Generator[Any, Any, Any]:
        context, steps = self._context, self._awaitable.__await__()
        advance: Callable[[Any], Any] = steps.send
        value: Any = None
        while True:
            try:
                waited_for = context.run(advance, value)
            except StopIteration as end:
                return end.value
            try:
                advance, value = steps.send, (yield waited_for)
            except BaseException as error:  # a cancellation: the step's matter
                advance, value = steps.throw, error
