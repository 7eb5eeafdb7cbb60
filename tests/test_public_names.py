# SPDX-License-Identifier: Apache-2.0
"""What a program that is ported from Prefect imports is there, under the names that it imports."""

from __future__ import annotations

import importlib

import pytest

from microflow.context import SettingsContext
from microflow.exceptions import PrefectException
from microflow.settings import current_settings, temporary_settings

NAMES = {
    "": """flow task Flow Task State tags unmapped allow_failure get_run_logger get_client pause_flow_run
        resume_flow_run suspend_flow_run transaction Transaction serve""",
    "assets": "Asset AssetProperties MaterializingTask add_asset_metadata materialize",
    "cache_policies": """CachePolicy CompoundCachePolicy Inputs RunId TaskSource CacheKeyFnPolicy FlowParameters DEFAULT
        INPUTS TASK_SOURCE RUN_ID FLOW_PARAMETERS NO_CACHE NONE""",
    "client": """Client SyncClient get_client FlowRun TaskRun FlowRunInput TaskRunInput TaskRunResult FlowRunResult
        RunInput""",
    "client.orchestration": "get_client",
    "context": """FlowRunContext EngineContext TaskRunContext TagsContext SettingsContext ContextModel get_run_context
        serialize_context hydrated_context tags""",
    "exceptions": """MicroflowException PrefectException FailedRun CrashedRun CancelledRun PausedRun UnfinishedRun
        MissingResult MissingFlowError UnspecifiedFlowError ScriptError ParameterTypeError ParameterBindError
        SignatureMismatchError ReservedArgumentError InvalidNameError UpstreamTaskError MissingContextError
        ObjectNotFound NotPausedError FlowPauseTimeout FlowRunWaitTimeout PrefectSignal Abort Pause ExternalSignal
        TerminationSignal HashError SerializationError ConfigurationError MappingLengthMismatch
        MappingMissingIterable""",
    "results": """ResultStore ResultRecord ResultRecordMetadata get_result_store should_persist_result LocalFileSystem
        MemoryLockManager FileSystemLockManager""",
    "runtime": "flow_run task_run",
    "states": """State StateType StateDetails StateGroup get_state_exception aget_state_exception raise_state_exception
        araise_state_exception return_value_to_state exception_to_failed_state exception_to_crashed_state Scheduled
        AwaitingRetry Late AwaitingConcurrencySlot Pending Submitting InfrastructurePending Running Retrying Completed
        Failed Crashed Cancelled Cancelling Paused Suspended""",
    "tasks": "Task task task_input_hash exponential_backoff",
    "transactions": """BaseTransaction Transaction AsyncTransaction CommitMode IsolationLevel TransactionState
        get_transaction transaction atransaction""",
}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in NAMES.items() for name in names.split()]
)
def test_a_name_is_where_a_ported_program_imports_it_from(module, name):
    assert hasattr(importlib.import_module(f"microflow.{module}".rstrip(".")), name)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        importlib.import_module("microflow.client").nonsense


def test_errors_are_of_the_family_that_their_names_say():
    exceptions = importlib.import_module("microflow.exceptions")
    for name in ("ParameterBindError", "SignatureMismatchError", "ReservedArgumentError"):
        assert issubclass(getattr(exceptions, name), TypeError)
    assert issubclass(exceptions.MissingContextError, RuntimeError)
    assert issubclass(exceptions.InvalidNameError, ValueError)
    for name in ("Abort", "Pause", "TerminationSignal"):
        assert not issubclass(getattr(exceptions, name), Exception)
    assert issubclass(exceptions.UpstreamTaskError, PrefectException)


def test_a_context_of_settings_gives_those_of_now_and_brings_its_own():
    with temporary_settings(default_task_retries=3):
        context = SettingsContext.get()
    assert current_settings().default_task_retries == 0
    with context as entered:
        assert entered.settings.default_task_retries == current_settings().default_task_retries == 3
        with context.copy():
            assert current_settings().default_task_retries == 3
    assert current_settings().default_task_retries == 0
    with pytest.raises(RuntimeError, match="not entered"):
        context.__exit__(None, None, None)
