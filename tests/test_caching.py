# SPDX-License-Identifier: Apache-2.0
"""Cached task runs: what is stored under which key, when it is found again, and what happens when it cannot be."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from typing import Any

import pytest

from microflow import _task_transactions, flow, task
from microflow._arguments import quote
from microflow._locks import IsolationLevel
from microflow.cache_policies import DEFAULT, INPUTS, NO_CACHE, TASK_SOURCE
from microflow.context import TaskRunContext
from microflow.exceptions import ConfigurationError
from microflow.results import MemoryLockManager, ResultRecord, ResultStore, get_result_store
from microflow.settings import temporary_settings
from microflow.states import Failed
from microflow.transactions import CommitMode, atransaction, get_transaction, transaction
from tests.behaviour_support import pins
from tests.support import Colour, Witness, both, memory_home, task_states


@pytest.fixture(autouse=True)
def _memory(monkeypatch, tmp_path):
    memory_home(monkeypatch)
    monkeypatch.setattr(_task_transactions, "_warned", set())
    with temporary_settings(local_storage_path=str(tmp_path / "storage")):
        yield


def counting(witness: Witness) -> Any:
    def work(x=0):
        witness.saw(x)
        return [x, witness[x]]

    return work


def names(colour: Colour, made: Any, *calls: tuple[Any, ...]) -> list[str]:
    """The names of the final states of these calls, one after the other, in one flow run."""

    @colour.flow
    def main():
        found = []
        for args in calls:
            found.append((yield made(*args, return_state=True)).name)
        return quote(found)

    listed: list[str] = colour.run(main).unwrap()
    return listed


class TestHits:
    @both
    @pins("task_engine", 130, 115)
    def test_the_default_policy_finds_results_inside_of_one_flow_run_only(self, colour: Colour):
        witness, seen = Witness(), list[str]()
        hook = [lambda task, run, state: seen.append(state.name)]
        made = colour.task(counting(witness), persist_result=True, on_completion=hook)
        assert names(colour, made, (1,), (1,), (2,)) == ["Completed", "Cached", "Completed"]
        assert seen == ["Completed", "Cached", "Completed"]  # completion hooks run for a cached one as well
        assert names(colour, made, (1,)) == ["Completed"]
        assert witness[1] == 2

    @both
    def test_a_cached_run_is_recorded_and_gives_the_stored_value(self, colour: Colour):
        witness = Witness()
        made = colour.task(counting(witness), name="work", cache_policy=INPUTS)

        @colour.flow
        def main():
            return [(yield made(1)), (yield made(1))]

        assert colour.run(main) == [[1, 1], [1, 1]]
        assert task_states("work") == [["Pending", "Running", "Completed"], ["Pending", "Running", "Cached"]]

    @both
    @pins("task_engine", 82)
    def test_none_is_a_result_like_any_other(self, colour: Colour):
        made = colour.task(lambda: None, cache_policy=TASK_SOURCE)
        assert names(colour, made, (), ()) == ["Completed", "Cached"]
        assert colour.run(made) is None

    @both
    @pins("task_engine", 131)
    def test_a_key_function_gets_the_resolved_parameters_with_self_and_defaults(self, colour: Colour):
        seen: list[Any] = []

        def key(context, parameters):
            seen.append((context.task.name, parameters))
            return f"{parameters['x']}-{parameters['y']}"

        def work(self, x, y=2):
            return x

        class Box:
            method = colour.task(work, name="method", cache_key_fn=key)

        box = Box()
        assert names(colour, box.method, (1,), (1, 2)) == ["Completed", "Cached"]
        assert colour.run(box.method, x=1, return_state=True).name == "Cached"
        assert seen[0] == ("method", {"self": box, "x": 1, "y": 2})

    @both
    @pins("task_engine", 133)
    def test_a_key_function_that_gives_none_or_an_empty_text_means_no_caching(self, colour: Colour):
        for value in (None, ""):
            made = colour.task(lambda: 1, cache_key_fn=lambda context, parameters, value=value: value)
            assert names(colour, made, (), ()) == ["Completed", "Completed"]

    @both
    @pins("task_engine", 132)
    def test_a_key_that_cannot_be_computed_is_warned_of_once_and_names_the_argument(self, colour: Colour, caplog):
        witness = Witness()

        def work(x, lock):
            witness.saw("work")

        made = colour.task(work, name="locked", cache_policy=INPUTS)
        lock = threading.Lock()
        assert names(colour, made, (1, lock), (1, lock)) == ["Completed", "Completed"]
        assert witness["work"] == 2
        (record,) = [each for each in caplog.records if "computing cache key" in each.getMessage()]
        assert (record.levelname, record.name) == ("WARNING", "microflow.task_runs")
        assert "'lock'" in record.getMessage()
        assert "task 'locked'" in record.getMessage()

    @both
    @pins("task_engine", 134)
    def test_an_argument_that_cannot_be_counted_may_be_left_out(self, colour: Colour):
        made = colour.task(lambda x, lock: x, cache_policy=DEFAULT - "lock")
        lock = threading.Lock()
        assert names(colour, made, (1, lock), (1, lock)) == ["Completed", "Cached"]

    @both
    def test_a_key_function_that_raises_stores_nothing(self, colour: Colour, caplog):
        made = colour.task(lambda: 1, cache_key_fn=lambda context, parameters: 1 / 0)
        assert names(colour, made, (), ()) == ["Completed", "Completed"]
        assert "division by zero" in caplog.text

    @both
    @pins("task_engine", 135)
    def test_a_result_is_used_until_it_expires(self, colour: Colour):
        made = colour.task(lambda: 1, cache_policy=TASK_SOURCE, cache_expiration=timedelta(seconds=-1))
        assert names(colour, made, (), ()) == ["Completed", "Completed"]
        kept = colour.task(lambda: 2, cache_policy=TASK_SOURCE, cache_expiration=timedelta(days=1))
        assert names(colour, kept, (), ()) == ["Completed", "Cached"]

    @both
    @pins("task_engine", 136)
    def test_refreshing_writes_anew_and_the_task_beats_the_setting(self, colour: Colour):
        witness = Witness()
        options: dict[str, Any] = {"cache_policy": INPUTS}
        plain = colour.task(counting(witness), **options)
        fresh = colour.task(counting(witness), refresh_cache=True, **options)
        never = colour.task(counting(witness), refresh_cache=False, **options)
        assert [colour.run(plain, 1), colour.run(fresh, 1), colour.run(plain, 1)] == [[1, 1], [1, 2], [1, 2]]
        with temporary_settings(task_refresh_cache=True):
            assert colour.run(never, 1) == [1, 2]
            assert colour.run(plain, 1) == [1, 3]

    @both
    def test_nothing_is_stored_without_being_asked_for(self, colour: Colour, tmp_path):
        made = colour.task(lambda: 1)
        assert names(colour, made, (), ()) == ["Completed", "Completed"]
        assert names(colour, colour.task(lambda: 1, cache_policy=NO_CACHE), (), ()) == ["Completed", "Completed"]
        assert not (tmp_path / "storage").exists()

    @both
    def test_what_is_around_a_task_decides_where_it_says_nothing(self, colour: Colour):
        seen: list[Any] = []

        @colour.task
        def inner():
            context = TaskRunContext.get()
            assert context is not None
            seen.append(context.persist_result)

        @colour.task(persist_result=True)
        def outer():
            yield inner()

        @colour.flow(persist_result=True)
        def persisting():
            yield inner()

        @colour.flow
        def plain():
            yield inner()
            yield outer()

        colour.run(persisting)
        colour.run(plain)
        assert seen == [True, False, True]
        with temporary_settings(default_task_persist_result=False):
            colour.run(persisting)
        with temporary_settings(persist_results_by_default=True):
            colour.run(inner)
            colour.run(plain)
        assert seen[3:] == [False, True, True]  # the last is Cached: its results are persisted


class TestStorageKeys:
    @both
    @pins("task_engine", 137)
    def test_what_stands_under_the_key_is_the_result_whoever_wrote_it(self, colour: Colour):
        ResultStore().write("written elsewhere", key="mine")
        witness = Witness()
        made = colour.task(counting(witness), result_storage_key="mine")
        assert colour.run(made) == "written elsewhere"
        assert not witness

    @both
    @pins("task_engine", 138)
    def test_the_key_is_formatted_when_the_task_runs(self, colour: Colour):
        def work(x):
            return x

        made = colour.task(work, result_storage_key="{parameters[x]}-{task_run.task_name}-bar")
        assert names(colour, made, (1,), (1,), (2,)) == ["Completed", "Cached", "Completed"]
        of_flow = colour.task(work, name="of-flow", result_storage_key="{flow_run.flow_name}__bar")

        @colour.flow(name="outer")
        def main():
            yield of_flow(1)

        colour.run(main)
        assert ResultStore().exists("1-work-bar")
        assert ResultStore().exists("outer__bar")

    @both
    @pins("task_engine", 139)
    def test_a_key_that_cannot_be_formatted_fails_the_attempt(self, colour: Colour, monkeypatch):
        witness = Witness()
        made = colour.task(counting(witness), name="work", result_storage_key="{nothing}", retries=1)
        with pytest.raises(KeyError, match="nothing"):
            colour.run(made)
        names(colour, made, ())
        assert task_states("work") == [["Pending", "Running", "Retrying", "Failed"]]
        assert not witness

    @both
    @pins("task_engine", 140)
    def test_a_failure_leaves_the_key_free(self, colour: Colour, tmp_path):
        """The reference's blocking engine stores exceptions under keys that nobody knows."""
        calls: list[int] = []

        def work():
            calls.append(1)
            if len(calls) == 1:
                raise ValueError("no")
            return "fine"

        made = colour.task(work, result_storage_key="static")
        with pytest.raises(ValueError):
            colour.run(made)
        assert not [each for each in tmp_path.rglob("*") if each.is_file()]
        assert colour.run(made) == "fine"


class TestFailures:
    @both
    def test_a_returned_failure_is_not_found_as_a_success(self, colour: Colour):
        """Defect of the reference: the next call is Cached, and its result is the failure's data."""
        made = colour.task(lambda: Failed(message="no"), cache_policy=TASK_SOURCE)
        assert names(colour, made, (), ()) == ["Failed", "Failed"]

    @both
    def test_a_returned_failure_that_is_retried_stores_nothing(self, colour: Colour):
        """Defect of the reference: None is stored, and the retry finds it instead of running."""
        calls: list[int] = []

        def work():
            calls.append(1)
            return Failed() if len(calls) == 1 else "fine"

        made = colour.task(work, cache_policy=TASK_SOURCE, retries=1)
        assert colour.run(made) == "fine"
        assert len(calls) == 2

    @both
    @pins("task_engine", 141)
    def test_a_value_that_cannot_be_stored_is_returned_and_its_run_completes(self, colour: Colour, caplog):
        rolled_back: list[str] = []
        value = object()
        made = colour.task(
            lambda: value,
            result_serializer="json",
            cache_policy=TASK_SOURCE,
            on_rollback=[lambda txn: rolled_back.append("rolled back")],
        )
        state = colour.run(made, return_state=True)
        assert (state.name, state.data.load()) == ("Completed", value)
        assert rolled_back == ["rolled back"]
        assert any(record.levelname == "WARNING" and "serializing" in record.getMessage() for record in caplog.records)
        assert colour.run(made, return_state=True).name == "Completed"

    @both
    @pins("task_engine", 142)
    def test_a_stored_payload_that_is_gone_fails_the_call_when_its_key_stands_elsewhere(self, colour: Colour, tmp_path):
        keys = tmp_path / "keys"
        policy = TASK_SOURCE.configure(key_storage=keys)
        made = colour.task(lambda: 1, cache_policy=policy, result_storage=tmp_path / "payloads", name="split")
        combined = colour.task(lambda: 2, cache_policy=TASK_SOURCE, result_storage=tmp_path / "whole", name="whole")
        assert names(colour, made, ()) == names(colour, combined, ()) == ["Completed"]
        for folder in ("payloads", "whole"):
            for path in (tmp_path / folder).rglob("*"):
                path.unlink()
        assert names(colour, made, ()) == ["Failed"]
        assert names(colour, combined, ()) == ["Completed"]

    @both
    @pins("task_engine", 147)
    def test_waiting_for_equal_calls_needs_a_lock_manager(self, colour: Colour):
        policy = INPUTS.configure(isolation_level=IsolationLevel.SERIALIZABLE)
        made = colour.task(lambda x: x, cache_policy=policy)
        with pytest.raises(ConfigurationError, match="not supported by provided configuration"):
            colour.run(made, 1)
        assert names(colour, made, (1,)) == ["Failed"]


class TestStores:
    @both
    @pins("task_engine", 76)
    def test_a_returned_record_is_its_value(self, colour: Colour):
        made = colour.task(lambda: ResultRecord(5))
        assert colour.run(made) == 5
        assert colour.run(made, return_state=True).result(_sync=True) == 5

    @both
    @pins("task_engine", 143)
    def test_results_need_not_stay_in_memory(self, colour: Colour):
        stores: list[ResultStore] = []

        def work():
            stores.append(get_result_store())
            return 5

        made = colour.task(work, cache_policy=TASK_SOURCE, cache_result_in_memory=False)
        assert names(colour, made, (), ()) == ["Completed", "Cached"]
        assert colour.run(made) == 5
        assert not stores[0].cache_result_in_memory

    @both
    @pins("task_engine", 146)
    def test_keys_may_be_stored_apart_from_results(self, colour: Colour, tmp_path):
        policy = TASK_SOURCE.configure(key_storage=tmp_path / "keys")
        made = colour.task(lambda: 5, cache_policy=policy, result_storage=tmp_path / "payloads")
        assert names(colour, made, (), ()) == ["Completed", "Cached"]
        (key,) = [path for path in (tmp_path / "keys").rglob("*") if path.is_file()]
        (payload,) = [path for path in (tmp_path / "payloads").rglob("*") if path.is_file()]
        assert key.name == payload.name
        assert "microflow_version" in json.loads(key.read_bytes())["metadata"]

    def test_equal_calls_at_the_same_time_run_once_when_they_wait_for_each_other(self):
        witness, go_on = Witness(), threading.Event()
        policy = INPUTS.configure(isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=MemoryLockManager())

        @task(cache_policy=policy)
        def work(x):
            witness.saw(x)
            go_on.wait(0.05)
            return x

        @flow
        def main():
            futures = [work.submit(1) for _ in range(4)]
            for future in futures:
                future.wait()
            return quote(sorted(future.state.name for future in futures))

        assert main().unwrap() == ["Cached", "Cached", "Cached", "Completed"]
        assert witness[1] == 1


class TestNesting:
    @both
    @pins("task_engine", 145)
    def test_inside_of_a_task_results_are_stored_when_the_outermost_commits(self, colour: Colour):
        seen: list[list[str]] = []
        made = colour.task(lambda: 1, cache_policy=TASK_SOURCE)
        opened = atransaction if colour.isasync else transaction

        @colour.task
        def lazily():
            one = yield made(return_state=True)
            two = yield made(return_state=True)
            seen.append([one.name, two.name])

        colour.run(lazily)
        assert seen == [["Completed", "Completed"]]
        assert colour.run(made, return_state=True).name == "Cached"

        fresh = colour.task(lambda: 2, cache_policy=TASK_SOURCE + INPUTS, result_storage_key=None)
        if colour.isasync:

            @task
            async def eagerly():
                async with opened(commit_mode=CommitMode.EAGER):
                    return [(await fresh(return_state=True)).name, (await fresh(return_state=True)).name]

        else:

            @task
            def eagerly():
                with opened(commit_mode=CommitMode.EAGER):
                    return [fresh(return_state=True).name, fresh(return_state=True).name]

        assert colour.run(eagerly) == ["Completed", "Cached"]

    @both
    @pins("task_engine", 126)
    def test_a_task_inherits_isolation_and_lock_manager_of_the_transaction_around_it(self, colour: Colour):
        locks = MemoryLockManager()
        seen: list[Any] = []

        def work():
            own = get_transaction()
            assert own is not None
            seen.append((own.isolation_level, getattr(own.store, "lock_manager", None)))

        made = colour.task(work, cache_policy=TASK_SOURCE)
        options: dict[str, Any] = {
            "key": "around",
            "store": ResultStore(lock_manager=locks),
            "isolation_level": IsolationLevel.SERIALIZABLE,
        }

        if colour.isasync:

            @flow
            async def main():
                async with atransaction(**options):
                    await made()

        else:

            @flow
            def main():
                with transaction(**options):
                    made()

        colour.run(main)
        assert seen == [(IsolationLevel.SERIALIZABLE, locks)]
