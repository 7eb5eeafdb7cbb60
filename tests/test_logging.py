# SPDX-License-Identifier: Apache-2.0
"""Run loggers: which logger, which fields its records carry, and that nothing is configured or formatted unasked."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

import microflow.logging as run_logging
from microflow import flow, get_run_logger, task
from microflow.context import FlowRunContext, TaskRunContext
from microflow.exceptions import MissingContextError
from microflow.logging import FLOW_RUNS, TASK_RUNS, flow_run_logger, get_logger


@pytest.fixture(autouse=True)
def all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "microflow")


def fields(record: logging.LogRecord, *names: str) -> dict[str, Any]:
    return {name: getattr(record, name) for name in names}


def mine(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What the tests' own code logged, not the engines."""
    return [record for record in caplog.records if record.msg.startswith("mine")]


def test_loggers_hang_below_the_package():
    assert get_logger().name == "microflow"
    assert get_logger("x").name == get_logger("microflow.x").name == "microflow.x"
    assert (FLOW_RUNS.name, TASK_RUNS.name) == ("microflow.flow_runs", "microflow.task_runs")


def test_nothing_is_configured_by_being_imported():
    for logger in (get_logger(), FLOW_RUNS, TASK_RUNS):
        assert (logger.handlers, logger.propagate) == ([], True)


def test_outside_of_runs_there_is_no_run_logger():
    with pytest.raises(MissingContextError):
        get_run_logger()


def test_outside_of_runs_there_is_a_mute_one_when_run_loggers_are_disabled(monkeypatch):
    """So that functions of flows can be tested as plain functions."""
    monkeypatch.setattr(FLOW_RUNS, "disabled", True)
    monkeypatch.setattr(TASK_RUNS, "disabled", True)
    get_run_logger().info("mine")


def test_records_of_a_flow_run_carry_its_ids_and_names(caplog):
    @flow
    def main() -> Any:
        get_run_logger().info("mine %s", 5)
        context = FlowRunContext.get()
        assert context is not None
        return context.flow_run.id, context.flow_run.name

    run_id, name = main()
    (record,) = mine(caplog)
    assert (record.name, record.getMessage()) == ("microflow.flow_runs", "mine 5")
    assert fields(record, "flow_run_id", "flow_run_name", "flow_name") == {
        "flow_run_id": run_id,
        "flow_run_name": name,
        "flow_name": "main",
    }


def test_records_of_a_task_run_carry_its_ids_and_those_of_its_flow_run(caplog):
    @task(task_run_name="named")
    def work() -> Any:
        get_run_logger(colour="red").info("mine")
        context = TaskRunContext.get()
        assert context is not None
        return context.task_run

    @flow
    def main() -> Any:
        context = FlowRunContext.get()
        assert context is not None
        run = work()
        return context.flow_run.name, (run.id, run.flow_run_id)

    flow_run_name, (run_id, flow_run_id) = main()
    (record,) = mine(caplog)
    assert record.name == "microflow.task_runs"
    names = ("task_run_id", "task_run_name", "task_name", "flow_run_id", "flow_run_name", "flow_name", "colour")
    assert list(fields(record, *names).values()) == [
        run_id,
        "named",
        "work",
        flow_run_id,
        flow_run_name,
        "main",
        "red",
    ]


def test_a_task_run_outside_of_flows_logs_with_unknown_flow_names(caplog):
    @task
    def free() -> None:
        get_run_logger().info("mine")

    free()
    (record,) = mine(caplog)
    assert fields(record, "flow_run_id", "flow_run_name", "flow_name") == {
        "flow_run_id": None,
        "flow_run_name": "<unknown>",
        "flow_name": "<unknown>",
    }


def test_the_extra_of_one_call_wins_over_the_runs_fields(caplog):
    @flow
    def main() -> None:
        get_run_logger(a=1, b=2).info("mine", extra={"b": 3})

    main()
    (record,) = mine(caplog)
    assert fields(record, "a", "b", "flow_name") == {"a": 1, "b": 3, "flow_name": "main"}


def test_a_context_may_be_given(caplog):
    @flow
    def main() -> None:
        outer = FlowRunContext.get()
        inner(outer)

    @task
    def inner(outer: Any) -> None:
        get_run_logger(outer).info("mine")

    main()
    assert mine(caplog)[0].name == "microflow.flow_runs"


def test_coroutine_runs_log_likewise(caplog):
    @task
    async def work() -> None:
        get_run_logger().info("mine task")

    @flow
    async def main() -> None:
        get_run_logger().info("mine flow")
        await work()

    asyncio.run(main())
    assert [record.name for record in mine(caplog)] == ["microflow.flow_runs", "microflow.task_runs"]


def test_a_run_says_how_it_ended_at_the_level_of_its_end(caplog):
    @flow
    def main(fail: bool) -> None:
        if fail:
            raise ValueError("no")

    main(False)
    main(True, return_state=True)
    ends = [record for record in caplog.records if record.getMessage().startswith("Finished in state")]
    assert [(record.levelname, record.name) for record in ends] == [
        ("INFO", "microflow.flow_runs"),
        ("ERROR", "microflow.flow_runs"),
    ]


def test_no_record_is_made_when_its_level_is_off(caplog, monkeypatch):
    """The budget of a task call has no room for log records that nobody reads."""
    caplog.set_level(logging.CRITICAL, "microflow")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a logger was made for nobody")

    for module in ("microflow._task_lifecycle", "microflow._flow_lifecycle"):
        for name in ("task_run_logger", "flow_run_logger"):
            monkeypatch.setattr(f"{module}.{name}", refuse, raising=False)

    @task
    def work() -> None:
        pass

    @flow
    def main() -> None:
        work()

    main()
    assert caplog.records == []


def test_a_run_logger_is_a_logger_adapter_like_any_other():
    class Run:
        id, name, flow_name = 1, "n", "f"

    adapter = flow_run_logger(Run(), colour="red")  # type: ignore[arg-type]  # the three fields are all it reads
    assert isinstance(adapter, logging.LoggerAdapter)
    assert adapter.isEnabledFor(logging.DEBUG)
    assert adapter.extra == {"flow_run_id": 1, "flow_run_name": "n", "flow_name": "f", "colour": "red"}
    assert run_logging.RunLogger is logging.LoggerAdapter
