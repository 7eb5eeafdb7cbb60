# SPDX-License-Identifier: Apache-2.0
"""The context as data, and the context again: in another process, and in pools of the user's own."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import pickle
from typing import Any
from uuid import UUID

import pytest

from microflow import flow, tags, task
from microflow._carried import describe_flow_run, detached_run, history_of, parts, stand_in, teach
from microflow.context import (
    FlowRunContext,
    TaskRunContext,
    current_tags,
    hydrated_context,
    serialize_context,
    with_context,
)
from microflow.settings import current_settings, temporary_settings
from tests import remote_tasks as remote
from tests.support import fold, task_ids

KEYS = {
    "flow_run_context",
    "task_run_context",
    "tags_context",
    "settings_context",
    "asset_context",
    "deployment_id",
    "deployment_parameters",
}


def in_task(body: Any, **parameters: Any) -> Any:
    """What `body` gives as a task of a flow with parameters."""
    inner = task(name="inner")(lambda: body())
    outer = flow(name="outer")(lambda number=3: inner())
    return outer(**parameters)


def inner_run() -> str:
    """The id of the task run."""
    (found,) = (run_id for run_id, history in fold().tasks.items() if history.created["name"].startswith("inner"))
    return found


class TestSerialize:
    def test_every_key_is_there_and_empty_outside_of_runs(self):
        serialized = serialize_context()
        assert serialized.keys() == KEYS
        assert serialized["settings_context"] == current_settings().as_dict()
        assert [key for key in KEYS if serialized[key]] == ["settings_context"]
        assert serialized["deployment_id"] is None

    def test_in_a_task_it_is_plain_json_that_tells_of_the_runs(self):
        def body() -> Any:
            with tags("b", "a"):
                return serialize_context()

        serialized = json.loads(json.dumps(in_task(body, number=5)))
        flow_run = fold().flow_run
        assert serialized["flow_run_context"]["flow_run"]["id"] == str(flow_run.id)
        assert serialized["flow_run_context"]["flow_run"]["parameters"] == {"number": 5}
        assert serialized["task_run_context"]["task_run"]["id"] == inner_run()
        assert serialized["tags_context"] == {"current_tags": ["a", "b"]}


class TestHydrate:
    @pytest.mark.parametrize("nothing", [None, {}])
    def test_nothing_leaves_what_is_current(self, nothing):
        with tags("kept"), hydrated_context(nothing) as live:
            assert (live, current_tags()) == (None, {"kept"})

    def test_everything_is_current_in_the_block_and_gone_after_it(self):
        def body() -> Any:
            with tags("a"), temporary_settings(default_task_retries=4):
                return serialize_context()

        serialized = in_task(body)
        with hydrated_context(serialized) as live:
            flow_context, task_context = FlowRunContext.get(), TaskRunContext.get()
            assert live is not None
            assert flow_context is not None
            assert task_context is not None
            assert flow_context.live is live
            assert flow_context.flow_run.id == fold().flow_run.id
            assert flow_context.flow_run.run_count == 1
            assert (flow_context.flow.name, task_context.task.name) == ("outer", "inner")
            assert task_context.task_run.state_name == "Running"
            assert task_context.task_run.id == fold().task_run(inner_run()).id
            assert (current_tags(), current_settings().default_task_retries) == ({"a"}, 4)
            assert flow_context.start_time is not None
            with pytest.raises(RuntimeError, match="known here by name only"):
                flow_context.flow.fn()
        assert FlowRunContext.get() is TaskRunContext.get() is None
        assert (current_tags(), current_settings().default_task_retries) == (set(), 0)

    def test_calls_in_the_block_are_recorded_in_memory_only(self):
        serialized = in_task(serialize_context)
        before = fold().position
        with hydrated_context(serialized) as live:
            assert live is not None
            assert remote.parent_of(1) == [4, 11]
        assert fold().position == before
        assert sum(history.created["name"].startswith("add") for history in _run_of(live).tasks.values()) == 4

    def test_an_error_in_the_block_undoes_everything_too(self):
        serialized = in_task(serialize_context)
        with pytest.raises(ValueError, match="inside"), hydrated_context(serialized):
            raise ValueError("inside")
        assert FlowRunContext.get() is None


def _run_of(live: Any) -> Any:
    from microflow.client.fold import Run

    run = Run(live.run_id, live.store)
    run.fold(live.store.read(live.run_id).records)
    return run


class TestWithContext:
    def test_the_context_of_its_making_is_current_in_any_pool(self):
        def body() -> Any:
            with tags("mine"):
                wrapped = with_context(remote.closure_free_context)
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                here = pool.submit(wrapped).result()
            context = multiprocessing.get_context("forkserver")
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
                there = pool.submit(pickle.loads(pickle.dumps(wrapped))).result()
            return here, there

        here, there = in_task(body)
        expected = (str(fold().flow_run.id), inner_run(), ["mine"])
        assert here == expected
        assert tuple(there) == expected


def test_a_stand_in_tells_name_and_version():
    found = stand_in({"kind": "microflow.flows:Flow", "name": "elsewhere", "version": "7"})
    assert (found.name, found.version) == ("elsewhere", "7")


def test_records_are_cut_into_lines():
    bodies = [{"k": "state", "run": "x", "message": "m" * 200_000} for _ in range(7)]
    cut = list(parts(bodies))
    assert [len(part) for part in cut] == [2, 2, 2, 1]
    assert [body for part in cut for body in part] == bodies
    assert list(parts([])) == []


def test_a_detached_run_keeps_results_as_its_owner_does():
    facts = in_task(serialize_context)["flow_run_context"]
    flow_stand_in = stand_in(facts["flow"])
    for keep in (True, False):
        assert detached_run(facts["flow_run"], flow_stand_in, keep_results=keep).keep_results is keep


class TestHistory:
    def run_with_calls(self) -> Any:
        outer = flow(name="outer")(lambda: [remote.parent_of(1), remote.add(100)])
        outer()
        return fold()

    def test_it_is_of_the_calls_below_one_task_run_and_theirs(self):
        run = self.run_with_calls()
        named = {history.created["name"].rpartition("-")[0]: run_id for run_id, history in run.tasks.items()}
        bodies, dropped = history_of(run, UUID(named["parent_of"]))
        assert {body["run"] for body in bodies} == {*task_ids("add")} - {task_ids("add")[-1]}
        assert [body["k"] for body in bodies].count("task") == 4
        assert dropped == []
        assert history_of(run, run.flow_run.id) == ([], [])

    def test_a_detached_run_that_was_taught_it_hands_the_calls_back(self):
        run = self.run_with_calls()
        named = {history.created["name"].rpartition("-")[0]: run_id for run_id, history in run.tasks.items()}
        bodies, dropped = history_of(run, UUID(named["parent_of"]))
        name = {"k": "rename", "run": bodies[0]["run"], "name": "renamed"}
        facts = {**describe_flow_run(run.flow_run), "attempt": 0}
        live = detached_run(facts, stand_in({"kind": "microflow.flows:Flow", "name": "outer", "version": None}))
        teach(live, [*bodies, name], (), dropped)
        assert live.run.task_run(bodies[0]["run"]).state_name == "Completed"
        assert live.run.task_run(bodies[0]["run"]).name == "renamed"

    def test_names_and_commits_go_along(self):
        run = self.run_with_calls()
        named = {history.created["name"].rpartition("-")[0]: run_id for run_id, history in run.tasks.items()}
        history = run.tasks[task_ids("add")[0]]
        history.names.append("renamed")
        history.committed = True
        bodies, _ = history_of(run, UUID(named["parent_of"]))
        assert [body["k"] for body in bodies[:6]] == ["task", "rename", "state", "state", "state", "note"]
        assert bodies[5]["what"] == "committed"
