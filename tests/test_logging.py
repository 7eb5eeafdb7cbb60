# SPDX-License-Identifier: Apache-2.0
"""Run loggers: which logger, which fields its records carry, and that nothing is configured or formatted unasked."""

from __future__ import annotations

import asyncio
import builtins
import io
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import microflow.logging as run_logging
from microflow import flow, get_run_logger, task
from microflow._prints import restore_print
from microflow.context import FlowRunContext, TaskRunContext
from microflow.exceptions import MissingContextError
from microflow.logging import FLOW_RUNS, TASK_RUNS, flow_run_logger, get_logger
from microflow.settings import temporary_settings
from tests.behaviour_support import pins


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


@pins("flows", 90)
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

    for module in ("microflow._task_transitions", "microflow._flow_lifecycle"):
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


class TestPrints:
    """``log_prints``: one replacement of ``print`` for the whole process, decided for each call by its context."""

    @pytest.fixture(autouse=True)
    def _as_before(self):
        yield
        restore_print()

    @pins("flows", 89)
    def test_what_a_run_prints_is_logged_by_its_logger_where_it_prints(self, caplog, capsys):
        @task
        def work() -> None:
            print("mine", 1, sep="-", end="!\n\n")

        @flow(log_prints=True)
        def main() -> None:
            print("mine flow")
            work()

        main()
        found = [record for record in caplog.records if record.msg == "%s"]
        assert [(record.name, record.funcName, record.args) for record in found] == [
            ("microflow.flow_runs", "main", ("mine flow",)),
            ("microflow.task_runs", "work", ("mine-1!",)),
        ]
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize(
        ("outer", "inner", "logged"), [(True, False, False), (False, True, True), (True, None, True)]
    )
    def test_a_task_decides_for_itself_and_inherits_otherwise(self, caplog, capsys, outer, inner, logged):
        @task(log_prints=inner)
        def work() -> None:
            print("mine")

        @flow(log_prints=outer)
        def main() -> None:
            work()
            work.submit().result()

        main()
        count = sum(record.args == ("mine",) for record in caplog.records)
        assert (count, capsys.readouterr().out) == ((2, "") if logged else (0, "mine\nmine\n"))

    @pins("flows", 87)
    @pytest.mark.parametrize(
        ("setting", "root", "middle", "leaf", "logged"),
        [
            (False, True, None, None, ["root", "middle", "leaf"]),
            (False, True, False, None, ["root"]),
            (True, False, None, True, ["leaf"]),
            (True, None, None, False, ["root", "middle"]),
        ],
    )
    def test_subflows_inherit_until_one_says_otherwise(self, caplog, capsys, setting, root, middle, leaf, logged):
        @flow(log_prints=leaf)
        def innermost() -> None:
            print("leaf")

        @flow(log_prints=middle)
        def inner() -> None:
            print("middle")
            innermost()

        @flow(log_prints=root)
        def outer() -> None:
            print("root")
            inner()

        with temporary_settings(log_prints=setting):
            outer()
        assert [record.args[0] for record in caplog.records if record.msg == "%s"] == logged
        assert capsys.readouterr().out.split() == [name for name in ("root", "middle", "leaf") if name not in logged]

    def test_the_setting_counts_where_no_run_says_anything(self, caplog, capsys):
        @task
        def work() -> None:
            print("mine")

        with temporary_settings(log_prints=True):
            work()
        work()
        assert sum(record.args == ("mine",) for record in caplog.records) == 1
        assert capsys.readouterr().out == "mine\n"

    @pins("flows", 88)
    def test_other_files_and_code_outside_of_runs_print_as_ever(self, caplog, capsys):
        text = io.StringIO()

        @flow(log_prints=True)
        def main() -> None:
            print("mine", file=text)
            thread = threading.Thread(target=print, args=("from a thread of one's own",))
            thread.start()
            thread.join()

        main()
        print("outside")
        assert text.getvalue() == "mine\n"
        assert capsys.readouterr().out == "from a thread of one's own\noutside\n"
        assert not any(record.args == ("mine",) for record in caplog.records)

    def test_print_is_replaced_once_when_it_is_first_needed_and_can_be_put_back(self):
        restore_print()
        before = builtins.print

        @task(log_prints=True)
        def work() -> Any:
            return builtins.print

        @task
        def plain() -> Any:
            return builtins.print

        assert plain() is before
        ours = work()
        assert ours is not before
        assert work() is plain() is builtins.print is ours
        restore_print()
        assert builtins.print is before

    def test_a_print_that_replaced_ours_is_left_alone(self):
        @task(log_prints=True)
        def work() -> None:
            pass

        work()
        ours = builtins.print
        own = builtins.print = lambda *values, **options: None
        restore_print()
        assert builtins.print is own
        builtins.print = ours

    def test_a_handler_that_prints_does_not_go_round_in_circles(self, capsys):
        class Printing(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                print("handled", record.getMessage())

        handler = Printing()
        TASK_RUNS.addHandler(handler)
        try:

            @task(log_prints=True)
            def work() -> None:
                print("mine")

            work()
        finally:
            TASK_RUNS.removeHandler(handler)
        assert "handled mine\n" in capsys.readouterr().out


def fresh(code: str, home: Path) -> tuple[str, str]:
    """What a new interpreter writes to standard output and error: a flow, then `code`, then one that fails."""
    script = (
        "import sys\n"
        "from microflow import flow\n"
        "@flow\n"
        "def divides(by: int) -> float: return 1 / by\n"
        "divides(1)\n"
        "print('logging' in sys.modules)\n"
        f"{code}\n"
        "divides(2)\n"
        "divides(0, return_state=True)\n"
    )
    environment = {"MICROFLOW_HOME": str(home), "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


class TestLoadingLogging:
    def test_an_error_is_shown_as_logging_shows_it_though_nobody_had_loaded_that(self, private_home):
        out, errors = fresh("", private_home)
        assert out == "False\n"
        assert "Encountered exception during execution: ZeroDivisionError" in errors
        assert "Finished in state Completed" not in errors

    def test_a_program_that_configures_logging_after_its_first_run_hears_the_next_one(self, private_home):
        out, errors = fresh("import logging; logging.basicConfig(level='INFO')", private_home)
        assert out == "False\n"
        assert errors.count(f"INFO:{FLOW_RUNS.name}:Finished in state Completed()") == 1

    def test_a_level_that_is_changed_later_counts_at_once(self, caplog):
        @flow
        def empty() -> None:
            pass

        for level, heard in ((logging.WARNING, False), (logging.INFO, True), (logging.ERROR, False)):
            caplog.clear()
            FLOW_RUNS.setLevel(level)
            try:
                empty()
            finally:
                FLOW_RUNS.setLevel(logging.NOTSET)
            assert any("Finished" in record.getMessage() for record in caplog.records) is heard
