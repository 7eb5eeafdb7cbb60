# SPDX-License-Identifier: Apache-2.0
"""``microflow.runtime``: what is running now, as attributes that are looked up when they are read."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from microflow import flow, tags, task
from microflow.context import FlowRunContext, TaskRunContext
from microflow.runtime import flow_run, task_run
from tests.behaviour_support import pins
from tests.support import both, memory_home


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


def test_outside_of_runs_everything_is_empty():
    assert (flow_run.id, flow_run.name, flow_run.flow_name, flow_run.parent_flow_run_id) == (None,) * 4
    assert (flow_run.tags, flow_run.parameters, flow_run.run_count) == ([], {}, 0)
    assert flow_run.scheduled_start_time.tzinfo is not None
    assert (task_run.id, task_run.name, task_run.task_name) == (None,) * 3
    assert (task_run.tags, task_run.parameters, task_run.run_count) == ([], {}, 0)


@pins("flows", 91)
def test_the_flow_run_id_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("MICROFLOW__FLOW_RUN_ID", "abc")
    assert flow_run.id == "abc"

    @flow
    def main() -> Any:
        context = FlowRunContext.get()
        assert context is not None
        return flow_run.id == str(context.flow_run.id)

    assert main()


@pins("flows", 92)
def test_an_environment_variable_takes_the_place_of_an_attribute(monkeypatch):
    mocked = {"NAME": "mocked", "RUN_COUNT": "7", "SCHEDULED_START_TIME": "2026-01-31T12:00:00", "TAGS": "a"}
    for name, text in mocked.items():
        monkeypatch.setenv(f"MICROFLOW__RUNTIME__FLOW_RUN__{name}", text)
    monkeypatch.setenv("MICROFLOW__RUNTIME__TASK_RUN__NAME", "task")

    @flow
    def main() -> Any:
        return flow_run.name, flow_run.run_count, task_run.name

    assert main() == ("mocked", 7, "task")
    assert flow_run.scheduled_start_time == datetime(2026, 1, 31, 12, tzinfo=timezone.utc)
    with pytest.raises(ValueError, match="cannot be mocked"):
        flow_run.tags


@pins("flows", 92)
def test_an_unknown_attribute_is_an_attribute_error_and_its_import_an_import_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        flow_run.nothing  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        from microflow.runtime.task_run import nothing  # type: ignore[attr-defined]  # noqa: F401
    assert "parameters" in dir(task_run)
    assert "root_flow_run_id" in dir(flow_run)


@both
def test_inside_of_runs_they_are_the_present_ones(colour):
    seen: dict[str, Any] = {}

    @colour.task(name="child-task", retries=1)
    def work(x):
        seen.setdefault("counts", []).append(task_run.run_count)
        if task_run.run_count == 1:
            raise ValueError("again")
        context = TaskRunContext.get()
        assert context is not None
        assert (task_run.id, task_run.name) == (str(context.task_run.id), context.task_run.name)
        seen["task"] = (task_run.task_name, task_run.parameters, task_run.tags)

    @colour.flow(name="inner")
    def inner():
        return flow_run.parent_flow_run_id, flow_run.root_flow_run_id, flow_run.id

    @colour.flow(name="outer", version="7")
    def outer(y):
        seen["flow"] = (flow_run.flow_name, flow_run.flow_version, flow_run.parameters, flow_run.tags)
        yield work(y)
        child = yield inner()
        return child, (flow_run.id, flow_run.root_flow_run_id)

    with tags("a", "b"):
        (parent, root, child), (own, own_root) = colour.run(outer, 5)
    assert seen["task"] == ("child-task", {"x": 5}, ["a", "b"])
    assert seen["counts"] == [1, 2]
    assert seen["flow"] == ("outer", "7", {"y": 5}, ["a", "b"])
    assert (parent, root, own_root) == (own, own, own)
    assert child != own


@both
@pins("task_engine", 4)
def test_a_callable_for_the_name_sees_the_resolved_parameters(colour):
    from microflow.states import Completed

    made = colour.task(lambda x: task_run.name, task_run_name=lambda: f"run of {task_run.parameters['x']}")
    assert colour.run(made, Completed(data="five")) == "run of five"


def test_a_task_in_a_thread_of_the_runner_reads_its_own():
    @task
    def work(x):
        return task_run.parameters, flow_run.flow_name

    @flow
    def main():
        return work.submit(1).result()

    assert main() == ({"x": 1}, "main")
