# SPDX-License-Identifier: Apache-2.0
"""Generator tasks: a run whose items are consumed while it runs.

Nothing happens before the first item is asked for. The run is RUNNING until the generator ends, also between items, and
its time limit counts the consumer's time, though it interrupts the generator only. A failure starts it again from the
beginning if a retry is left: the consumer sees the items anew. What is sent is ignored; what is thrown fails the
attempt, as if the generator had raised it.

A consumer that does not want more (``break``, ``close()``, garbage collection) ends the run as COMPLETED without a
value; the generator's ``finally`` runs first, and what it raises there is the run's failure. Its transaction is rolled
back, since its work was not finished, and leaves the one around it alone.

The items are not in the log: in a re-execution a generator task is run again, also when it had completed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._boundary import check_boundary
from ._handing_over import Closed, hand_over
from ._waits import settle

if TYPE_CHECKING:
    from ._task_lifecycle import BaseTaskRunEngine
    from ._waits import Outcome


async def consume(engine: BaseTaskRunEngine[Any], transaction: Any) -> None:
    """One attempt: hand over what the generator yields, one by one, and record its end."""
    generator = (await _begin(engine)).unwrap()
    context = engine._call.flow_context if engine._call is not None else None
    try:
        value, is_closed = await _hand_over_all(engine, generator)
    finally:
        if context is not None and engine.task_run is not None:
            context.links.ended(engine.task_run.id)
    engine._stop_the_clock()
    await settle(engine.handle_success(value, transaction))
    if is_closed and transaction is not None:
        transaction.spares_parent = True
        await settle(transaction.rollback())


async def _hand_over_all(engine: BaseTaskRunEngine[Any], generator: Any) -> tuple[Any, bool]:
    """The generator's return value, and whether the consumer wanted no more."""
    while True:
        outcome = await engine.waits.call(_step, generator, engine.task.isasync)
        if isinstance(outcome.error, (StopIteration, StopAsyncIteration)):
            return getattr(outcome.error, "value", None), False
        (item,) = outcome.unwrap()
        _yielded(engine, item)
        try:
            await hand_over(item)
        except Closed:
            (await _close(engine, generator)).unwrap()
            return None, True
        except BaseException:  # thrown by the consumer: the generator is not to go on, and ends now
            await _close(engine, generator)
            raise
        engine._taken_up()


def _yielded(engine: BaseTaskRunEngine[Any], item: Any) -> None:
    """The consumer gets an item, unless the flow run was asked to stop: a yield is a boundary. While the consumer has
    it, the time limit goes on and interrupts nothing, and the run is a parent of what is called with the item."""
    context = engine._call.flow_context if engine._call is not None else None
    if context is not None and engine.task_run is not None:
        context.live.refresh()
        check_boundary(context)
        context.links.add_yielded(item, engine.task_run.id)
    if engine._limit is not None:
        engine._limit.suspend()


async def _begin(engine: BaseTaskRunEngine[Any]) -> Outcome[Any]:
    args, kwargs = engine.task.parameters.call_arguments(engine.parameters)
    return await engine.waits.call(engine.task.fn, *args, **kwargs)


async def _close(engine: BaseTaskRunEngine[Any], generator: Any) -> Outcome[Any]:
    return await engine.waits.call(generator.aclose if engine.task.isasync else generator.close)


def _step(generator: Any, isasync: bool) -> Any:
    """The next item in a tuple, or a coroutine for that: an item may be something that can be awaited."""

    async def later() -> tuple[Any]:
        return (await generator.__anext__(),)

    return later() if isasync else (next(generator),)
