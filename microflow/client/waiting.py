# SPDX-License-Identifier: Apache-2.0
"""Waiting for the end of a flow run, of this process or another, in either form.

What ends the wait is a final state in the log, or the death of the process that owned the run, which the follower looks
for once a second: nobody writes that into the log, so it is derived, here as everywhere (``Run.seen``). A run in the
queue is taken over by whoever serves its flow, so its wait goes on, until that server gives it up or it ends.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .._loggers import get_logger
from ..exceptions import FlowRunWaitTimeout
from .news import News

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from .._waits import Waits
    from .live import LiveRun
    from .objects import FlowRun
    from .orchestration import SyncClient


async def until_final(
    client: SyncClient, flow_run_id: UUID | str, waits: Waits, timeout: float | None, *, log_states: bool = False
) -> FlowRun:
    """The run once it has ended. FlowRunWaitTimeout when that takes longer than `timeout` seconds; 0 looks once."""
    deadline = None if timeout is None else time.monotonic() + timeout
    seen = 0
    with client.addressed(flow_run_id) as live, News([live]) as news:
        while True:
            live.refresh()
            while not (is_alive := client.is_alive(live.run)) and live.refresh():
                pass  # a dead owner's last words count
            state = live.run.seen(is_alive)
            if log_states:
                seen = _log_states(live.run_id, live.run.states, seen)
            if state is not None and state.is_final() and not _will_be_taken_over(live, client):
                return client.read_flow_run(live.run_id)
            if deadline is not None and time.monotonic() >= deadline:
                raise FlowRunWaitTimeout(
                    f"flow run {live.run_id} did not end within {timeout} seconds; it is in state {state}"
                )
            await news.next(waits, deadline)


def _will_be_taken_over(live: LiveRun, client: SyncClient) -> bool:
    """Whether the end is only derived from the death of a process, and the run waits to be claimed."""
    recorded = live.flow_run.state
    if recorded is None or recorded.is_final() or recorded.is_paused():
        return False
    return live.run_id in client.store.queue.names()


def _log_states(run_id: str, states: Sequence[object], seen: int) -> int:
    for state in states[seen:]:
        get_logger("flow_runs").info("Flow run %s is in state %s", run_id, state)
    return len(states)
