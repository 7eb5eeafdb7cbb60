# SPDX-License-Identifier: Apache-2.0
"""A flow in a process of its own, started by code."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from microflow import flow, task
from microflow.client.orchestration import current_client
from microflow.entrypoints import load_entrypoint
from microflow.exceptions import ConfigurationError
from microflow.flow_engine import run_flow_in_subprocess
from microflow.states import StateType

from .support import flow_run_ids, flow_states, fold, memory_home

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
import sys
from microflow import flow, suspend_flow_run
from microflow.states import Cancelled

@flow
def plain(number: int = 1):
    return 2 * number

@flow
async def coroutine(number: int = 1):
    return 2 * number

@flow
def items(number: int = 1):
    yield number
    return 2 * number

@flow
async def async_items(number: int = 1):
    yield number

@flow
def fails(number: int = 1):
    raise ValueError("no good")

@flow
def suspends(number: int = 1):
    suspend_flow_run()

@flow
def cancels(number: int = 1):
    return Cancelled()

@flow
def exits(number: int = 1):
    sys.exit(5)
"""


@pytest.fixture(name="script")
def script_fixture(tmp_path: Path) -> Any:
    path = tmp_path / "flows_of_processes.py"
    path.write_text(SCRIPT)
    before = list(sys.path)
    yield lambda name: load_entrypoint(f"{path}:{name}")
    sys.path[:] = before
    sys.modules.pop("flows_of_processes", None)


@pytest.mark.parametrize(
    ("name", "status", "state"),
    [
        ("plain", 0, "Completed"),
        ("coroutine", 0, "Completed"),
        ("items", 0, "Completed"),
        ("async_items", 0, "Completed"),
        ("fails", 1, "Failed"),
        ("suspends", 0, "Suspended"),
        ("cancels", 0, "Cancelled"),
        ("exits", 5, "Crashed"),
    ],
)
def test_the_status_of_the_process_says_how_the_run_ended(script, name, status, state, capfd):
    process = run_flow_in_subprocess(script(name))
    process.join(60)
    capfd.readouterr()  # multiprocessing shows what was raised
    assert process.exitcode == status
    assert flow_states()[-1] == state


def test_parameters_and_futures_are_given_over(script):
    @task
    def upstream() -> int:
        return 21

    @flow
    def main() -> None:
        process = run_flow_in_subprocess(script("plain"), parameters={"number": upstream.submit()})
        process.join(60)

    main()
    (run_id,) = flow_run_ids("plain")
    state = fold(run_id).flow_run.state
    assert state is not None
    assert (state.type, state.read_result()) == (StateType.COMPLETED, 42)


def test_an_existing_run_is_run(script):
    run = current_client().create_flow_run(script("plain"), parameters={"number": 4})
    run_flow_in_subprocess(script("plain"), run).join(60)
    state = current_client().read_flow_run(run.id).state
    assert state is not None
    assert state.read_result() == 8


def test_what_another_process_could_not_run_is_refused_before_it_is_recorded(script, monkeypatch):
    @flow
    def local() -> None:
        pass

    with pytest.raises(ConfigurationError, match="cannot be run in another process"):
        run_flow_in_subprocess(local)
    memory_home(monkeypatch)
    with pytest.raises(ConfigurationError, match="in memory"):
        run_flow_in_subprocess(script("plain"))
    assert flow_run_ids() == []
