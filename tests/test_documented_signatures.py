# SPDX-License-Identifier: Apache-2.0
"""The task engine, futures, runners and the waiter have every name that the pages document, with its parameters.

What stands here is copied from those pages: names, the order of parameters and their defaults. An own parameter may
follow the documented ones if it has a default.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

import pytest

from microflow.futures import FutureList

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT = "timeout=None"
RESULT = "timeout=None, raise_on_failure=True"
SUBMIT = "task, parameters, wait_for=None, dependencies=None"
MAP = "task, parameters, wait_for=None"

RUN = (
    "task, task_run_id=None, task_run=None, parameters=None, wait_for=None, return_type=result, dependencies=None, "
    "context=None"
)
ENGINE_BASE: dict[str, str | None] = {
    "compute_transaction_key": "",
    "handle_rollback": "txn",
    "is_cancelled": "",
    "is_running": "",
    "log_finished_message": "",
    "record_terminal_state_timing": "state",
    "state": None,
}
ENGINE: dict[str, str | None] = {
    "asset_context": "",
    "begin_run": "",
    "call_hooks": "state=None",
    "call_task_fn": "transaction",
    "can_retry": "exc_or_state",
    "client": None,
    "handle_crash": "exc",
    "handle_exception": "exc",
    "handle_retry": "exc_or_state",
    "handle_success": "result, transaction",
    "handle_timeout": "exc",
    "initialize_run": "task_run_id=None, dependencies=None",
    "result": "raise_on_failure=True",
    "run_context": "",
    "set_state": "state, force=False",
    "setup_run_context": "client=None",
    "start": "task_run_id=None, dependencies=None",
    "transaction_context": "",
    "wait_until_ready": "",
}

PAGES: dict[str, dict[str, str | dict[str, str | None]]] = {
    "task_engine": {
        "run_task": RUN,
        "run_task_sync": RUN,
        "run_task_async": RUN,
        "run_generator_task_sync": RUN,
        "run_generator_task_async": RUN,
        "BaseTaskRunEngine": ENGINE_BASE,
        "SyncTaskRunEngine": {**ENGINE_BASE, **ENGINE},
        "AsyncTaskRunEngine": {**ENGINE_BASE, **ENGINE},
    },
    "futures": {
        "as_completed": "futures, timeout=None",
        "wait": "futures, timeout=None",
        "resolve_futures_to_states": "expr",
        "resolve_futures_to_results": "expr",
        "PrefectFuture": {
            "task_run_id": None,
            "state": None,
            "wait": WAIT,
            "result": RESULT,
            "add_done_callback": "fn",
        },
        "PrefectTaskRunFuture": {"task_run_id": None, "state": None},
        "PrefectWrappedFuture": {"wrapped_future": None, "add_done_callback": "fn"},
        "PrefectConcurrentFuture": {"wait": WAIT, "result": RESULT},
        "PrefectDistributedFuture": {"wait": WAIT, "result": RESULT, "add_done_callback": "fn"},
        "PrefectFlowRunFuture": {
            "flow_run_id": None,
            "state": None,
            "wait": WAIT,
            "result": RESULT,
            "add_done_callback": "fn",
        },
        "PrefectFutureList": {"wait": WAIT, "result": RESULT},
        "DoneAndNotDoneFutures": {"done": None, "not_done": None},
    },
    "task_runners": {
        "TaskRunner": {"name": None, "duplicate": "", "submit": SUBMIT, "map": MAP},
        "ThreadPoolTaskRunner": {"duplicate": "", "submit": SUBMIT, "map": MAP, "cancel_all": ""},
        "PrefectTaskRunner": {"duplicate": "", "submit": SUBMIT, "map": MAP},
    },
    "task_runs": {
        "TaskRunWaiter": {
            "start": "",
            "stop": "",
            "wait_for_task_run": "task_run_id, timeout=None",
            "add_done_callback": "task_run_id, callback",
            "instance": "",
        },
    },
}


def documented() -> Iterator[Any]:
    """Where each documented name is, and its parameters; None: it is an attribute."""
    for module, names in PAGES.items():
        for name, members in names.items():
            found = [(name, members)] if isinstance(members, str) else members.items()
            for member, parameters in found:
                path = name if isinstance(members, str) else f"{name}.{member}"
                yield pytest.param(module, path, parameters, id=f"{module}.{path}")


@pytest.mark.parametrize(("module", "path", "parameters"), list(documented()))
def test_a_documented_name_is_there_with_its_parameters(module, path, parameters):
    holder: Any = importlib.import_module(f"microflow.{module}")
    *classes, name = path.split(".")
    for each in classes:
        holder = getattr(holder, each)
    found = inspect.getattr_static(holder, name)
    if parameters is None:
        assert not inspect.isfunction(found), "it is read, not called"
        return
    given = [each for each in inspect.signature(getattr(holder, name)).parameters.values() if each.name != "self"]
    written = [
        each.name if each.default is inspect.Parameter.empty else f"{each.name}={each.default}" for each in given
    ]
    many = len(parameters.split(", ")) if parameters else 0
    assert ", ".join(written[:many]) == parameters
    assert all(each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for each in given[:many])
    assert all(each.default is not inspect.Parameter.empty for each in given[many:]), "an own one is optional"


def test_what_is_called_on_the_class_of_the_waiter_is_so():
    waiter = importlib.import_module("microflow.task_runs").TaskRunWaiter
    of_class = {name for name in PAGES["task_runs"]["TaskRunWaiter"] if inspect.ismethod(getattr(waiter, name))}
    assert of_class == {"wait_for_task_run", "add_done_callback", "instance"}
    assert inspect.iscoroutinefunction(waiter.wait_for_task_run)


def test_a_list_of_futures_is_a_list():
    assert issubclass(FutureList, list)
