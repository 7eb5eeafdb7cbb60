# SPDX-License-Identifier: Apache-2.0
"""Plain values lead to the runs that they came from: ``task_inputs`` and parents of calls."""

from __future__ import annotations

import gc
import weakref
from uuid import uuid4

import pytest

from microflow import _links, flow, opaque, quote, task
from microflow._links import Links
from microflow.client.objects import FlowRunResult, TaskRunResult
from microflow.context import FlowRunContext, TaskRunContext
from tests.behaviour_support import pins
from tests.support import Colour, both, count_appends, flow_run_ids, fold, memory_home


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


class Thing:
    """A value that can be referred to weakly."""


@task
def give(value):
    return value


@task
def take(x, *args, **kwargs):
    return None


def created(name, flow_run_id=None):
    """The records of the runs of a task, in the order of the calls."""
    histories = fold(flow_run_id).tasks.values()
    return [each.created for each in histories if each.created["name"].startswith(f"{name}-")]


def inputs(name="take", flow_run_id=None):
    """What they were recorded to depend on: parameter -> run ids."""
    recorded = [each.get("inputs", {}) for each in created(name, flow_run_id)]
    return [{key: [run_id for _, run_id in items] for key, items in each.items()} for each in recorded]


def given(place=0, name="give"):
    return created(name)[place]["run"]


# ------------------------------------------------------------------------------------------- in a flow


@pins("task_engine", 57)
def test_every_parameter_is_named_also_when_it_came_from_nowhere():
    flow(lambda: take(1, 2, k=3))()
    assert inputs() == [{"x": [], "args": [], "kwargs": []}]


@pins("task_engine", 58)
def test_a_run_is_named_once_for_each_argument():
    @flow
    def body():
        future = give.submit(1)
        take([future, {"again": future}, future], future)

    body()
    assert inputs() == [{"x": [given()], "args": [given()], "kwargs": []}]


@pins("task_engine", 59)
@pytest.mark.parametrize("value", [257, 5.1, "Fred", (1, 2), [1000], {"a": 1}, Thing(), b"x" * 1000, frozenset({1})])
@both
def test_a_returned_value_leads_to_its_run(colour: Colour, value):
    give = colour.task(lambda: value, name="give")
    take = colour.task(lambda x: None, name="take")

    @colour.flow
    def body():
        yield take((yield give()))

    colour.run(body)
    assert inputs() == [{"x": [given()]}]


@pins("task_engine", 59)
@pytest.mark.parametrize("value", [2, -5, 256, True, None, ..., NotImplemented])
def test_a_value_that_all_share_leads_nowhere(value):
    flow(lambda: take(give(value)))()
    assert inputs()[0]["x"] == []


@pins("task_engine", 59)
def test_the_result_of_a_state_or_future_and_the_members_of_a_result_lead_to_the_run():
    @task
    def pair():
        return Thing(), {"inner": Thing()}

    @flow
    def body():
        first, second = pair()
        take(first, second["inner"])
        take(pair(return_state=True).result())
        take(pair.submit().result(), k=[pair.submit().result()[0]])

    body()
    runs = [each["run"] for each in created("pair")]
    assert inputs() == [
        {"x": [runs[0]], "args": [], "kwargs": []},  # one level deep: what stands inside of a member is not known
        {"x": [runs[1]], "args": [], "kwargs": []},
        {"x": [runs[2]], "args": [], "kwargs": [runs[3]]},
    ]


def test_values_are_found_wherever_they_stand_in_an_argument_but_for_quote():
    @flow
    def body():
        thing, text = give(Thing()), give("some text")
        take([{"deep": (thing, [text])}], opaque(thing), k=quote(thing))

    body()
    assert inputs() == [{"x": [given(0), given(1)], "args": [given(0)], "kwargs": []}]


@pins("task_engine", 60)
def test_a_task_that_was_called_by_a_task_of_the_same_flow_run_has_a_parent():
    @task
    def inner(x=0):
        return None

    @flow
    def subflow():
        inner()

    @task
    def outer():
        inner(1)
        subflow()

    flow(lambda: outer(), name="main")()
    (main,), (child,) = flow_run_ids("main"), flow_run_ids("subflow")
    (outer_record,) = created("outer", main)
    assert inputs("inner", main) == [{"x": [], "__parents__": [outer_record["run"]]}]
    assert inputs("outer", main) == [{}]
    assert inputs("inner", child) == [{"x": []}]


@both
def test_the_result_of_a_subflow_leads_to_its_flow_run(colour: Colour):
    subflow = colour.flow(lambda: Thing(), name="subflow")
    take = colour.task(lambda x: None, name="take")

    @colour.flow(name="main")
    def main():
        yield take((yield subflow()))

    colour.run(main)
    (main_id,), (child,) = flow_run_ids("main"), flow_run_ids("subflow")
    assert inputs("take", main_id) == [{"x": [child]}]
    assert created("take", main_id)[0]["inputs"]["x"] == [["flow_run", child]]


@pins("task_engine", 61)
def test_a_value_of_a_run_that_goes_on_makes_it_a_parent_until_it_has_ended():
    thing, run_id = Thing(), uuid4()

    @flow
    def body():
        context = FlowRunContext.get()
        assert context is not None
        context.links.add_yielded(thing, run_id)
        take(thing)
        context.links.ended(run_id)
        take(thing)

    body()
    assert [each.get("__parents__") for each in inputs()] == [[str(run_id)], None]
    assert [each["x"] for each in inputs()] == [[str(run_id)], [str(run_id)]]


@pins("task_engine", 62)
def test_nothing_is_kept_alive_and_an_id_that_is_used_again_leads_nowhere():
    class Large(list):
        """A list that can be referred to weakly."""

    @task
    def make():
        return Large(range(1000))

    @flow
    def body():
        gone = weakref.ref(make())
        gc.collect()
        assert gone() is None
        links = FlowRunContext.get().links
        (stale,) = links._entries
        other = Thing()
        links._entries[id(other)] = links._entries.pop(stale)  # as if the new object stood where the old one was
        take(other)
        assert id(other) not in links._entries

    body()
    assert inputs() == [{"x": [], "args": [], "kwargs": []}]


def test_to_be_found_costs_no_append():
    def appends(value):
        return count_appends(lambda: flow(lambda: take(value or give(Thing())))())

    assert appends(None) == appends(Thing()) + 2  # give() itself


def test_outside_of_flows_nothing_is_remembered():
    state = take(give(Thing()), return_state=True)
    assert state.is_completed()
    assert TaskRunContext.get() is None


def test_a_result_of_a_former_attempt_leads_nowhere():
    kept = []

    @flow(retries=1)
    def body():
        if not kept:
            kept.append(give(Thing()))
            raise ValueError
        take(kept[0])

    body()
    assert inputs()[0]["x"] == []


# -------------------------------------------------------------------------------------------------- the table


RUN = uuid4()


def test_a_small_value_is_told_from_an_equal_one():
    links = Links()
    value = "".join(["some", " text"])
    links.add(value, RUN)
    assert links.source_of(value) == TaskRunResult(id=RUN)
    assert links.source_of("".join(["some", " text"])) is None


def test_a_run_of_a_flow_can_be_the_source():
    links = Links()
    thing = Thing()
    links.add(thing, RUN, FlowRunResult)
    assert links.sources_in([thing]) == [FlowRunResult(id=RUN)]


@pytest.mark.parametrize("value", [list(range(1000, 2000)), "x" * 1000, dict.fromkeys(range(100)), (Thing(),) * 50])
def test_a_large_value_is_known_by_its_type_and_beginning(value):
    links = Links()
    links.add(value, RUN)
    assert links.source_of(value) is not None
    links._entries[id(RUN)] = links._entries[id(value)]
    assert links.source_of(RUN) is None


def test_an_object_without_attributes_is_known_by_its_type():
    class Slots:
        __slots__ = ()

    links = Links()
    value = Slots()
    links.add(value, RUN)
    assert links.source_of(value) is not None


def test_only_so_many_are_remembered_and_looked_at(monkeypatch):
    monkeypatch.setattr(_links, "MOST_LINKS", 4)
    links = Links()
    things = [Thing() for _ in range(5)]
    for thing in things:
        links.add(thing, RUN)
    assert [links.source_of(thing) is not None for thing in things] == [False, False, True, True, True]
    monkeypatch.setattr(_links, "MOST_LOOKS", 10)
    assert links.sources_in([[object() for _ in range(100)], things[4]]) == []
    assert links.sources_in([things[4], [object() for _ in range(100)]]) == [TaskRunResult(id=RUN)]


def test_a_cycle_is_looked_at_once():
    links = Links()
    links.add(Thing(), RUN)
    cycle = [1000]
    cycle.append(cycle)
    assert links.sources_in(cycle) == []
