# SPDX-License-Identifier: Apache-2.0
"""Flows for servers in other processes. Those that write leave witnesses in a folder."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from microflow import flow, pause_flow_run, suspend_flow_run, task
from microflow.context import FlowRunContext


@flow
def greet(who: str = "you") -> str:
    return f"hello {who}"


@flow
def pid() -> int:
    return os.getpid()


@task
def step(folder: str, name: str) -> str:
    """Leaves a witness of each execution."""
    (Path(folder) / f"{name}.{os.getpid()}.{time.time_ns()}").touch()
    return name


@flow
def two_steps(folder: str) -> list[str]:
    """Waits between its steps until it is told to go on."""
    first = step(folder, "first")
    (Path(folder) / f"waits.{os.getpid()}").touch()
    while not (Path(folder) / "go").exists():
        time.sleep(0.005)
    return [first, step(folder, "second")]


def _note_crash(flow: Any, flow_run: Any, state: Any) -> None:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run.id == flow_run.id
    (Path(flow_run.parameters["folder"]) / f"given-up.{state.name}.1").touch()


@flow(on_crashed=[_note_crash])
def deadly(folder: str) -> None:
    """Takes its process along."""
    step(folder, "begun")
    os.kill(os.getpid(), signal.SIGKILL)


@flow
def leaves(folder: str) -> list[str]:
    first = step(folder, "first")
    suspend_flow_run(timeout=None)
    return [first, step(folder, "second")]


@flow
def pauses(folder: str) -> list[str]:
    first = step(folder, "first")
    pause_flow_run()
    return [first, step(folder, "second")]


@flow
async def pauses_async(folder: str) -> list[str]:
    first = step(folder, "first")
    await pause_flow_run()
    return [first, step(folder, "second")]


@flow
async def leaves_async(folder: str) -> list[str]:
    first = step(folder, "first")
    await suspend_flow_run(timeout=None)
    return [first, step(folder, "second")]


@flow
def counted(folder: str, number: int) -> int:
    """A few witnessed steps, slow enough to be killed in between."""
    for each in range(5):
        step(folder, f"{number}-{each}")
        time.sleep(0.05)
    return number


@flow
def fails(words: Any) -> None:
    raise ValueError(words)


def _once(folder: str) -> str:
    if (Path(folder) / "failed").exists():
        return "in the end"
    (Path(folder) / "failed").touch()
    raise ValueError("not yet")


@flow(retries=1, retry_delay_seconds=3)
def fails_once(folder: str) -> str:
    return _once(folder)


@flow(retries=1, retry_delay_seconds=3)
async def fails_once_async(folder: str) -> str:
    return _once(folder)


deployed = greet.to_deployment("from-a-module", parameters={"who": "all"})
