# SPDX-License-Identifier: Apache-2.0
"""What tests of pauses share: doing something when a run enters a state, without polling."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from microflow.client.orchestration import current_client
from microflow.context import FlowRunContext

from .support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from microflow.events import Record


def own_run_id() -> str:
    """The id of the flow run whose code calls."""
    context = FlowRunContext.get()
    assert context is not None
    return context.live.run_id


@contextmanager
def when(state_type: str, action: Callable[[str], Any], times: int = 1) -> Iterator[None]:
    """In a flow's body: as often as the run enters a state of this type (at most `times`), call `action` with the run's
    id in a thread of its own. What it raises fails the test when the block ends."""
    run_id, left, errors = own_run_id(), times, []
    threads: list[threading.Thread] = []

    def work() -> None:
        try:
            action(run_id)
        except BaseException as error:  # carried to the test
            errors.append(error)

    def look(record: Record) -> None:
        nonlocal left
        if record.kind == "state" and "run" not in record.data and record.data["type"] == state_type and left:
            left -= 1
            threads.append(threading.Thread(target=work))
            threads[-1].start()

    end = current_client().store.bus.subscribe(run_id, look)
    try:
        yield
    finally:
        end()
        for thread in threads:
            thread.join(PATIENCE)
        assert not errors, errors
