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
from ._streams import CLOSE
from ._waits import entered, settle
from .states import StateType

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from uuid import UUID

    from ._task_lifecycle import BaseTaskRunEngine
    from ._waits import Outcome
    from .client.objects import TaskRunInput


async def items(
    engine: BaseTaskRunEngine[Any],
    task_run_id: UUID | None = None,
    dependencies: dict[str, set[TaskRunInput]] | None = None,
) -> AsyncGenerator[Any, Any]:
    """The run of a generator task from its creation to its last hook; see ``_streams`` for what it is sent."""
    engine._is_consumed = True
    async with entered(engine.start(task_run_id, dependencies)), entered(engine._links()):
        while engine.is_running():
            if engine.state.type is StateType.SCHEDULED:
                await settle(engine.wait_until_ready())
            if engine.is_cancelled() and await engine._cancel():
                break
            async with (
                entered(engine._assets_if_any()),
                entered(engine.run_context()),
                entered(engine._transaction_if_any()) as transaction,
            ):
                generator = (await _begin(engine)).unwrap()
                value, is_closed = None, False
                while not is_closed:
                    outcome = await engine.waits.call(_step, generator, engine.task.isasync)
                    if isinstance(outcome.error, (StopIteration, StopAsyncIteration)):
                        value = getattr(outcome.error, "value", None)
                        break
                    (item,) = outcome.unwrap()
                    engine._yielded(item)
                    try:
                        is_closed = (yield item) is CLOSE
                    except BaseException:  # thrown by the consumer: the generator is not to go on, and ends now
                        await _close(engine, generator)
                        raise
                    engine._taken_up()
                    if is_closed:
                        (await _close(engine, generator)).unwrap()
                engine._stop_the_clock()
                await settle(engine.handle_success(value, transaction))
                if is_closed and transaction is not None:
                    transaction.spares_parent = True
                    await settle(transaction.rollback())


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


def check_suspension(engine: BaseTaskRunEngine[Any]) -> None:
    """A yield is a boundary: raise what ends the flow run's body, if it was asked to stop."""
    call = engine._call
    if call is not None and call.flow_context is not None:
        call.flow_context.live.refresh()
        check_boundary(call.flow_context)
