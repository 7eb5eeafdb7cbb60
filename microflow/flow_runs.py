# SPDX-License-Identifier: Apache-2.0
"""Resuming flow runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .client.orchestration import SyncClient, current_client
from .exceptions import MicroflowException, MissingFlowError
from .flow_engine import run_flow

if TYPE_CHECKING:
    from uuid import UUID

    from .client.fold import Run
    from .client.live import LiveRun
    from .flows import Flow


def check_flow_fits(run: Run, flow: Flow[Any, Any]) -> None:
    """MissingFlowError unless `flow` is the one that the run was made from, judged by its name."""
    if flow.name != run.flow_run.flow_name:
        raise MissingFlowError(
            f"flow run {run.run_id} is a run of flow {run.flow_run.flow_name!r}, but the code names {flow.name!r}"
        )


def take_over(
    flow: Flow[Any, Any], flow_run_id: UUID | str, *, steal: bool = False, force: bool = False
) -> tuple[LiveRun, dict[str, Any], SyncClient]:
    """Claim a run for this process, with what is needed to run it again. Its parameters are rebuilt before the
    claim: a run that cannot be run here is not taken from anybody."""
    client = current_client()
    run = client.fold(str(flow_run_id))
    check_flow_fits(run, flow)
    try:
        parameters = flow.rebind(run.parameters())
    except MicroflowException as problem:
        raise MicroflowException(f"flow run {flow_run_id} cannot be run again here: {problem}") from problem
    return client.claim(str(flow_run_id), steal=steal, force=force), parameters, client


def rerun(flow: Flow[Any, Any], flow_run_id: UUID | str, *, steal: bool = False, force: bool = False) -> Any:
    """Run a run again from the top, in this process: what ended before is handed back, the rest is executed.

    Gives the final state, or a coroutine for it. RunningElsewhere while another process owns the run, unless
    `steal`; NotPausedError for a run that has ended, unless `force`."""
    live, parameters, _ = take_over(flow, flow_run_id, steal=steal, force=force)
    return run_flow(flow, None, parameters, None, "state", live=live)
