# SPDX-License-Identifier: Apache-2.0
"""Contexts: what is current, in nested runs, in threads, in asyncio tasks; tags."""

from __future__ import annotations

import asyncio
import threading
from contextvars import copy_context
from typing import Any

import pytest

from microflow import flow, tags, task
from microflow._waits import RUN_IS_ASYNC
from microflow.context import (
    EngineContext,
    FlowRunContext,
    TagsContext,
    TaskRunContext,
    current_tags,
    get_run_context,
)
from microflow.exceptions import MissingContextError


def what_is_current() -> tuple[str | None, str | None]:
    """The names of the current flow and task."""
    in_flow, in_task = FlowRunContext.get(), TaskRunContext.get()
    return (in_flow.flow.name if in_flow else None, in_task.task.name if in_task else None)


# ------------------------------------------------------------------------------------- entering


def test_a_context_is_current_between_with_and_its_end():
    assert TagsContext.get() is None
    with TagsContext({"a"}) as context:
        assert TagsContext.get() is context
    assert TagsContext.get() is None


def test_nested_contexts_restore_the_one_outside_also_after_an_exception():
    with TagsContext({"a"}) as outer:
        with pytest.raises(ValueError), TagsContext({"b"}):
            raise ValueError
        assert TagsContext.get() is outer


def test_a_context_cannot_be_entered_twice_but_its_copy_can():
    with TagsContext({"a"}) as context:
        with pytest.raises(RuntimeError, match="Context already entered"):
            context.__enter__()
        with context.copy() as twin:
            assert TagsContext.get() is twin is not context
            assert twin.current_tags == {"a"}
        assert TagsContext.get() is context
    with context:
        assert TagsContext.get() is context


def test_a_context_that_was_not_entered_cannot_be_left():
    with pytest.raises(RuntimeError, match="Asymmetric use of context"):
        TagsContext(set()).__exit__(None, None, None)


# ------------------------------------------------------------------------------------- runs


def test_outside_of_runs_there_is_no_run_context():
    assert what_is_current() == (None, None)
    with pytest.raises(MissingContextError):
        get_run_context()
    with pytest.raises(RuntimeError, match="not called from a flow or a task"):
        get_run_context()


def test_the_run_context_is_that_of_the_innermost_run():
    seen: list[Any] = []

    @task
    def inner_task() -> None:
        seen.append(get_run_context())

    @flow
    def subflow() -> None:
        seen.append(get_run_context())
        inner_task()
        seen.append(get_run_context())

    @task
    def calls_a_flow() -> None:
        seen.append(get_run_context())
        subflow()
        seen.append(get_run_context())

    @flow
    def main() -> None:
        seen.append(get_run_context())
        calls_a_flow()
        seen.append(get_run_context())

    main()
    names = [context.flow.name if isinstance(context, FlowRunContext) else context.task.name for context in seen]
    assert names == ["main", "calls_a_flow", "subflow", "inner_task", "subflow", "calls_a_flow", "main"]
    assert what_is_current() == (None, None)


def test_a_flow_in_a_task_outside_of_flows_wins_over_the_task():
    @flow
    def inside() -> str:
        return type(get_run_context()).__name__

    @task
    def free() -> tuple[str, str]:
        return type(get_run_context()).__name__, inside()

    assert free() == ("TaskRunContext", "FlowRunContext")


def test_the_context_of_a_flow_run_has_what_the_run_is_made_of():
    @flow
    def main(n: int = 3) -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow is main
        assert context.flow_run is context.live.flow_run
        assert context.parameters == {"n": 3}
        assert context.flow_run.start_time <= context.start_time
        assert context.client.owned[context.live.run_id] is context.live
        assert RUN_IS_ASYNC.get() is False

    main()
    assert RUN_IS_ASYNC.get() is None
    assert EngineContext is FlowRunContext


def test_the_context_of_a_task_run_has_what_the_run_is_made_of():
    @task
    async def add(x: int, y: int = 2) -> int:
        context = TaskRunContext.get()
        assert context is not None
        assert context.task is add
        assert context.parameters == {"x": 1, "y": 2}
        assert context.task_run.state_type == "RUNNING"
        assert context.start_time is not None
        assert RUN_IS_ASYNC.get() is True
        return x + y

    assert asyncio.run(add(1)) == 3


def test_each_attempt_has_a_context_of_its_own():
    contexts = []

    @flow(retries=1)
    def main() -> None:
        contexts.append(FlowRunContext.get())
        if len(contexts) < 2:
            raise ValueError

    main()
    assert contexts[0] is not contexts[1]
    assert contexts[0].flow_run is contexts[1].flow_run


# ------------------------------------------------------------------------------------- threads, asyncio


def test_submitted_tasks_see_the_flow_run_and_the_tags_in_their_thread():
    @task
    def look() -> tuple[Any, ...]:
        return (*what_is_current(), current_tags(), threading.current_thread() is main_thread)

    @flow
    def main() -> Any:
        with tags("a"):
            future = look.submit()
        return future.result()

    main_thread = threading.current_thread()
    assert main() == ("main", "look", {"a"}, False)


def test_a_thread_that_the_user_starts_has_no_run_unless_the_context_is_copied():
    seen = []

    @flow
    def main() -> None:
        context = copy_context()
        for target in (what_is_current, lambda: context.run(what_is_current)):
            thread = threading.Thread(target=lambda target=target: seen.append(target()))
            thread.start()
            thread.join()

    main()
    assert seen == [(None, None), ("main", None)]


def test_concurrent_coroutines_of_a_flow_see_each_its_own_task():
    @task
    async def look(n: int) -> Any:
        await asyncio.sleep(0)
        context = TaskRunContext.get()
        assert context is not None
        return context.parameters["n"]

    @flow
    async def main() -> Any:
        found = await asyncio.gather(*(look(n) for n in range(5)))
        return found, what_is_current()

    assert asyncio.run(main()) == ([0, 1, 2, 3, 4], ("main", None))


# ------------------------------------------------------------------------------------- tags


def test_tags_add_up_yield_the_union_and_are_taken_back():
    assert current_tags() == set()
    with tags("a", "b") as outer:
        assert outer == {"a", "b"}
        with tags("b", "c") as inner:
            assert inner == current_tags() == {"a", "b", "c"}
        assert current_tags() == {"a", "b"}
    assert current_tags() == set()


def test_changing_what_current_tags_gave_changes_nothing():
    with tags("a"):
        current_tags().add("b")
        assert current_tags() == {"a"}


def test_runs_get_the_tags_in_force_where_they_are_made_beside_their_own():
    @task(tags=["own"])
    def look() -> set[str]:
        context = TaskRunContext.get()
        assert context is not None
        return context.task_run.tags

    @flow
    def main() -> Any:
        context = FlowRunContext.get()
        assert context is not None
        with tags("inner"):
            return context.flow_run.tags, look()

    with tags("outer"):
        assert main() == ({"outer"}, {"outer", "inner", "own"})
