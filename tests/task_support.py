# SPDX-License-Identifier: Apache-2.0
"""What the tests of task runs share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microflow._arguments import quote
from microflow.context import TaskRunContext

if TYPE_CHECKING:
    from microflow.states import State
    from tests.support import Colour

FAILURE = ValueError("no")


def failing(times: int, seen: list[Any] | None = None) -> Any:
    """A function that raises that often, then gives the number of its calls."""
    calls: list[Any] = [] if seen is None else seen

    def work():
        calls.append(TaskRunContext.get())
        if len(calls) <= times:
            raise FAILURE
        return len(calls)

    return work


def in_flow(colour: Colour, made: Any, **kwargs: Any) -> State[Any]:
    """The final state of a task that is called in a flow."""

    @colour.flow
    def body():
        return quote((yield made(return_state=True, **kwargs)))

    state: State[Any] = colour.run(body).unwrap()
    return state
