# SPDX-License-Identifier: Apache-2.0
"""Flows, their runs, inputs and the client have every name that the page of flow runs documents and that the public
surface promises.

The page's parameters, in their order and with their defaults, are copied from it. An own parameter may follow if it
has a default.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

import microflow
from microflow import Flow, flow, get_client
from microflow.client import Client, SyncClient

PAGE = {
    "pause_flow_run": "wait_for_input=None, timeout=3600, poll_interval=10, key=None",
    "resume_flow_run": "flow_run_id, run_input=None",
    "suspend_flow_run": "wait_for_input=None, flow_run_id=None, timeout=3600, key=None, client=None",
    "wait_for_flow_run": "flow_run_id, timeout=10800, poll_interval=5, client=None, log_states=False",
}

#: those of the page that have a coroutine form of their own, with the same parameters
TWINS = ("pause_flow_run", "resume_flow_run", "suspend_flow_run")

SURFACE = {
    "": """flow task Flow Task State tags unmapped allow_failure get_run_logger get_client pause_flow_run
        resume_flow_run suspend_flow_run transaction Transaction serve""",
    "client": """Client SyncClient get_client FlowRun TaskRun FlowRunInput TaskRunInput TaskRunResult FlowRunResult
        RunInput""",
    "client.orchestration": "get_client",
    "exceptions": "FlowPauseTimeout FlowRunWaitTimeout FlowWaitTimeout NotPausedError",
    "flow_engine": """FlowRunEngine AsyncFlowRunEngine run_flow run_flow_sync run_flow_async run_generator_flow_sync
        run_generator_flow_async run_flow_in_subprocess""",
    "flow_runs": """pause_flow_run apause_flow_run suspend_flow_run asuspend_flow_run resume_flow_run aresume_flow_run
        wait_for_flow_run""",
    "flows": "Flow flow load_flow_from_entrypoint load_function_and_convert_to_flow",
    "futures": "FlowRunFuture PrefectFlowRunFuture",
    "input": """RunInput RunInputMetadata AutomaticRunInput run_input_subclass_from_type send_input asend_input
        receive_input create_flow_run_input acreate_flow_run_input create_flow_run_input_from_model
        acreate_flow_run_input_from_model read_flow_run_input aread_flow_run_input filter_flow_run_input
        afilter_flow_run_input delete_flow_run_input adelete_flow_run_input keyset_from_paused_state
        keyset_from_base_key""",
    "runtime.flow_run": """id tags scheduled_start_time name flow_name flow_version parameters parent_flow_run_id
        parent_deployment_id root_flow_run_id run_count api_url ui_url job_variables""",
}

OPTIONS = """name version flow_run_name retries retry_delay_seconds task_runner description timeout_seconds
    validate_parameters persist_result result_storage result_serializer cache_result_in_memory log_prints on_completion
    on_failure on_cancellation on_crashed on_running"""

ATTRIBUTES = """name version description fn flow_run_name task_runner retries retry_delay_seconds timeout_seconds
    should_validate_parameters persist_result log_prints isasync isgenerator ismethod isclassmethod isstaticmethod
    parameters _entrypoint on_completion on_failure on_cancellation on_crashed on_running on_completion_hooks
    on_failure_hooks on_cancellation_hooks on_crashed_hooks on_running_hooks with_options serve"""

METHODS = """create_flow_run create_task_run create_deployment create_flow_run_from_deployment read_flow_run
    read_flow_runs read_flow_run_states read_task_run read_task_runs read_task_run_states set_flow_run_state
    set_task_run_state resume_flow_run delete_flow_run"""


def parameters_of(function: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


@pytest.mark.parametrize("name", [*PAGE, *(f"a{name}" for name in TWINS)])
def test_a_function_of_the_page_has_the_pages_parameters(name):
    found = parameters_of(getattr(importlib.import_module("microflow.flow_runs"), name))
    wanted = (PAGE[name] if name in PAGE else PAGE[name[1:]]).split(", ")
    written = [each.name if each.default is each.empty else f"{each.name}={each.default}" for each in found]
    assert written[: len(wanted)] == wanted
    assert all(each.kind is each.POSITIONAL_OR_KEYWORD for each in found[: len(wanted)])
    assert all(each.default is not each.empty for each in found[len(wanted) :]), "an own one is optional"


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in SURFACE.items() for name in names.split()]
)
def test_a_name_of_the_surface_is_there(module, name):
    assert hasattr(importlib.import_module(f"microflow.{module}".rstrip(".")), name)


def test_what_is_promised_at_the_top_is_listed_there():
    assert set(SURFACE[""].split()) <= set(microflow.__all__)


@pytest.mark.parametrize("option", OPTIONS.split())
def test_every_option_of_a_flow_is_taken_by_the_decorator_the_class_and_with_options(option):
    def main() -> None: ...

    nothing: dict[str, Any] = {option: None}
    for made in (flow(**nothing)(main), Flow(main, **nothing), Flow(main).with_options(**nothing)):
        assert made() is None
    assert made.name == "main"


@pytest.mark.parametrize("name", ATTRIBUTES.split())
def test_a_flow_shows(name):
    @flow
    def main() -> None: ...

    assert hasattr(main, name)


@pytest.mark.parametrize("name", METHODS.split())
def test_both_clients_have_the_same_method(name):
    assert type(get_client()) is Client
    assert type(get_client(sync_client=True)) is SyncClient
    assert inspect.iscoroutinefunction(getattr(Client, name))
    assert not inspect.iscoroutinefunction(getattr(SyncClient, name))
