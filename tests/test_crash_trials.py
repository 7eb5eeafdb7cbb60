# SPDX-License-Identifier: Apache-2.0
"""``crash_everywhere`` on flows of five kinds, and on what breaks the promise."""

from __future__ import annotations

import os
import re

import pytest

from microflow import calls, flow, pause_flow_run, task
from microflow.input import RunInput
from microflow.testing import crash_everywhere, memory_home


@task
def double(x):
    return 2 * x


@task
def outer(x):
    return double(x) + double(x + 1)


@task
def fail(x):
    raise ValueError(f"no {x}")


@flow
def mapped(count: int):
    return sum(double.map(list(range(count))).result())


@flow
def nested(x):
    return [outer(x), outer.submit(x).result()]


@flow
def child(x):
    return double(x)


@flow
def parent(x):
    return [child(x), child(x + 1), double(x)]


class Approval(RunInput):
    approved: bool


@flow
def asks(x):
    first = double(x)
    answer = pause_flow_run(Approval, key="approve")
    return double(first) if answer.approved else first


@flow
def decides(x):
    try:
        value = fail(x)
    except ValueError as error:
        value = str(error)
    return value if double(x) > 2 else "small"


@flow
async def coroutine(x):
    return [double(x), await async_double(x)]


@task
async def async_double(x):
    return 2 * x


@flow
def failing(x):
    double(x)
    fail(x)


@pytest.mark.parametrize(
    ("made", "parameters"),
    [(mapped, {"count": 3}), (nested, {"x": 1}), (parent, {"x": 1}), (decides, {"x": 2}), (coroutine, {"x": 1}),
     (failing, {"x": 1})],
    ids=["mapped", "nested-tasks", "subflow", "caught-failure", "coroutine", "failing"],
)  # fmt: skip
def test_a_flow_that_is_killed_anywhere_comes_to_the_same(made, parameters):
    assert crash_everywhere(made, parameters) > 6


@pytest.mark.parametrize("approved", [True, False])
def test_a_flow_that_pauses_for_input_and_is_killed_anywhere_comes_to_the_same(approved):
    assert crash_everywhere(asks, {"x": 1}, answers={"approve": {"approved": approved}}) > 6


def test_a_flow_that_comes_to_something_else_after_a_kill_is_found():
    made = flow(name="changes")(lambda: (double(1), os.getpid())[1])
    with pytest.raises(AssertionError, match=r"'changes', killed in write \d+ of \d+ after \d+% of it: "):
        crash_everywhere(made)


def test_an_engine_that_runs_again_what_had_ended_is_found(monkeypatch):
    forgets = lambda live, run_id, *rest: (None, live.recorded_call(run_id) is not None)  # noqa: E731
    monkeypatch.setattr(calls, "earlier_end", forgets)
    with pytest.raises(AssertionError, match="executed"):
        crash_everywhere(nested, {"x": 1})


def test_a_task_that_is_executed_too_often_is_found(tmp_path):
    """Broken if executions were only believed from the log."""

    @flow
    def repeats(path):
        again = os.path.exists(path)
        open(path, "w").close()
        for number in range(3 if again else 1):
            double(number)

    path = tmp_path / "started"

    @flow(name="fresh")
    def fresh():
        repeats.fn(str(path))

    with pytest.raises(AssertionError, match="double-[0-9a-f]+ was executed"):
        crash_everywhere(fresh)


def test_a_generator_flow_is_refused_by_name():
    @flow
    def items():
        yield 1

    with pytest.raises(TypeError, match="the items of 'items' would have no consumer"):
        crash_everywhere(items)


def test_a_flow_that_hangs_is_named():
    with pytest.raises(AssertionError, match=re.escape("'hangs' did not end within 0.3 seconds")):
        crash_everywhere(flow(name="hangs")(lambda: os.read(os.pipe()[0], 1)), seconds=0.3)


def test_runs_in_memory_are_apart_from_all_others_and_gone_after_the_block():
    with memory_home() as client:
        child(1)
        (run,) = client.read_flow_runs()
        assert run.flow_name == "child"
        with memory_home() as inner:
            assert inner.read_flow_runs() == []
        child(2)
        assert len(client.read_flow_runs()) == 2
    with memory_home() as other:
        assert other.read_flow_runs() == []
