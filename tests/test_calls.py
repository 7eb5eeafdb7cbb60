# SPDX-License-Identifier: Apache-2.0
"""Which call this is: what makes two calls the same in two executions of a flow run, and what does not."""

from __future__ import annotations

import random
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from microflow import _kept, calls, flow, task, unmapped
from microflow.calls import earlier_end, identity, new_call, stand_in, upstreams
from microflow.client.objects import FlowRunResult, TaskRunResult
from microflow.client.orchestration import current_client
from microflow.context import FlowRunContext, TaskRunContext
from microflow.flow_runs import rerun
from microflow.futures import RunFuture
from microflow.states import Completed, Failed, Pending, Running, State, Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(params=["file", "memory"], autouse=True)
def home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "memory":
        monkeypatch.setenv("MICROFLOW_HOME", ":memory:")


@pytest.fixture(autouse=True)
def nobody_was_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_warned_sources", set())
    monkeypatch.setattr(_kept, "_warned", set())


@task
def add(x: Any, y: Any = 0) -> Any:
    """A task to call."""
    return x


@flow
def main() -> None:
    """A flow to call it in."""


@contextmanager
def in_a_run(of: Any = main) -> Iterator[FlowRunContext]:
    """As if the body of a new run were running here: every such run has the same id."""
    client = current_client()
    run = client.new_flow_run(of)
    live = client.start(run, of, {}, Pending(), own=True)
    live.propose(Running())
    live.flow_run.id = UUID(int=7)
    with FlowRunContext(of, live.flow_run, live, client, of.task_runner, {}) as context:
        yield context
    client.abandon(live)


def ids(*made: Callable[[], Any]) -> list[UUID]:
    """The ids of these calls, made in this order in one run."""
    with in_a_run():
        return [call().task_run.id for call in made]


def call(of: Any = add, *args: Any, **kwargs: Any) -> Any:
    return lambda: new_call(of, of.bind(args, kwargs))


# ------------------------------------------------------------------------------------- the same, or another


def test_the_same_call_has_the_same_id_in_every_execution():
    assert ids(call(add, 1)) == ids(call(add, 1)) == ids(call(add, x=1, y=0))
    (one,) = ids(call(add, 1))
    assert (one.version, one.variant) == (8, "specified in RFC 4122")


@pytest.mark.parametrize(
    "other",
    [
        call(add, 2),
        call(add, 1, 1),
        call(add, "1"),
        call(add.with_options(version="2"), 1),
        call(add.with_options(name="other"), 1),
    ],
    ids=["value", "default", "type", "version", "name"],
)
def test_another_input_version_or_name_makes_another_call(other):
    assert ids(call(add, 1)) != ids(other)


def test_options_that_do_not_change_what_is_called_do_not_change_the_call():
    assert ids(call(add, 1)) == ids(call(add.with_options(retries=3, tags=["a"], task_run_name="n"), 1))


def test_equal_calls_are_told_apart_by_their_order():
    three = ids(call(add, 1), call(add, 1), call(add, 1))
    assert len(set(three)) == 3
    assert three == ids(call(add, 1), call(add, 1), call(add, 1))


def test_the_order_of_different_calls_does_not_matter():
    one, two = call(add, 1), call(add, 2)
    assert ids(one, two) == list(reversed(ids(two, one)))


def test_threads_may_make_their_calls_in_any_order():
    def execution(seed: int) -> set[UUID]:
        numbers = [*range(20), *range(20)]
        random.Random(seed).shuffle(numbers)
        found: set[UUID] = set()
        with in_a_run() as context:

            def make(n: int) -> None:
                with context.copy():
                    found.add(new_call(add, add.bind((n,), {})).task_run.id)

            threads = [threading.Thread(target=make, args=(n,)) for n in numbers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return found

    assert execution(1) == execution(2)
    assert len(execution(3)) == 40


def test_a_new_attempt_of_the_flow_makes_new_calls():
    def in_attempt(number: int) -> UUID:
        with in_a_run() as context:
            context.flow_run.attempt = number
            found: UUID = call(add, 1)().task_run.id
            return found

    assert in_attempt(0) == in_attempt(0) != in_attempt(1)


def test_a_call_inside_of_a_task_belongs_to_that_task():
    def inside(n: int) -> UUID:
        with in_a_run() as context:
            outer = new_call(add, add.bind((n,), {})).task_run
            with TaskRunContext(add, outer, {}, context.client):
                inner = call(add, 5)()
            assert inner.task_run.task_inputs["__parents__"] == [TaskRunResult(id=outer.id)]
            found: UUID = inner.task_run.id
            return found

    assert inside(1) == inside(1) != inside(2)
    assert ids(call(add, 5)) != [inside(1)]


def test_a_task_of_another_flow_run_is_no_parent():
    """A subflow called in a task: its calls belong to the subflow's run."""
    with in_a_run() as context:
        foreign = new_call(add, add.bind((1,), {})).task_run
        foreign.flow_run_id = UUID(int=99)
        with TaskRunContext(add, foreign, {}, context.client):
            inner = call(add, 5)()
    assert "__parents__" not in inner.task_run.task_inputs
    assert [inner.task_run.id] == ids(call(add, 5))


def test_a_method_counts_by_what_its_object_holds():
    class Box:
        def __init__(self, content: int) -> None:
            self.content = content

        @task
        def work(self) -> None: ...

    assert ids(call(Box(1).work)) == ids(call(Box(1).work)) != ids(call(Box(2).work))


# ------------------------------------------------------------------------------------- upstreams


class Future(RunFuture):
    """A future of a run that never ends."""

    def wait(self, timeout: float | None = None) -> None: ...
    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any: ...
    def add_done_callback(self, fn: Any) -> None: ...


def state_of(run: int, flow_run: int | None = None, kind: type[Any] | Any = Completed, **fields: Any) -> State:
    details = {"task_run_id": UUID(int=run) if run else None, "flow_run_id": UUID(int=flow_run) if flow_run else None}
    state: State = kind(state_details=details, **fields)
    return state


def test_an_upstream_future_counts_by_its_call_and_not_by_its_result():
    one, two = Future(UUID(int=1)), Future(UUID(int=1))
    two._final_state = Completed(data=Value(5))
    assert ids(call(add, one)) == ids(call(add, two)) != ids(call(add, Future(UUID(int=2))))
    assert stand_in(one) == {"run": str(UUID(int=1))}


def test_an_upstream_state_counts_by_its_run_and_what_became_of_it():
    assert ids(call(add, state_of(1))) == ids(call(add, state_of(1, data=5)))
    assert ids(call(add, state_of(1))) != ids(call(add, state_of(2)))
    assert ids(call(add, state_of(1))) != ids(call(add, state_of(1, kind=Failed)))
    assert stand_in(Completed(message="m")) == {"state": "COMPLETED", "run": None, "message": "m"}
    assert stand_in(5) is None


def test_the_upstreams_of_a_value_are_found_inside_of_it_each_once():
    future = Future(UUID(int=1))
    value = {"a": [future, (state_of(2),)], "b": {state_of(0, 3)}, "c": future, "d": Completed()}
    assert upstreams(value) == [
        TaskRunResult(id=UUID(int=1)),
        TaskRunResult(id=UUID(int=2)),
        FlowRunResult(id=UUID(int=3)),
    ]
    assert upstreams(5) == []


def test_the_inputs_of_a_run_name_the_upstreams_of_each_parameter():
    future = Future(UUID(int=1))
    one, five, six = (TaskRunResult(id=UUID(int=number)) for number in (1, 5, 6))
    more: dict[str, set[Any]] = {"x": {one, five}, "other": {six}}
    with in_a_run():
        made = new_call(add, add.bind((future,), {}), [Future(UUID(int=2))], more)
    assert made.task_run.task_inputs == {
        "x": [TaskRunResult(id=UUID(int=1)), TaskRunResult(id=UUID(int=5))],
        "y": [],
        "wait_for": [TaskRunResult(id=UUID(int=2))],
        "other": [TaskRunResult(id=UUID(int=6))],
    }


# ------------------------------------------------------------------------------------- what a call is made of


def test_a_call_outside_of_flows_has_a_fresh_id_and_is_recorded_in_memory():
    one, two = call(add, 1)(), call(add, 1)()
    assert one.task_run.id != two.task_run.id
    assert one.recorder is current_client().tasks
    assert (one.flow_context, one.ended, one.again, one.task_run.flow_run_id) == (None, None, False, None)


def test_an_id_that_is_given_is_taken():
    with in_a_run():
        assert new_call(add, add.bind((1,), {}), task_run_id=UUID(int=5)).task_run.id == UUID(int=5)


def test_the_task_run_of_a_call_is_described_and_not_recorded_yet():
    with in_a_run() as context:
        task_run = call(add.with_options(version="2", retries=1, tags=["a"]), 1)().task_run
    assert task_run.name == f"add-{task_run.id.hex[:3]}"
    assert (task_run.task_key, task_run.task_version, task_run.tags) == (add.task_key, "2", {"a"})
    assert (task_run.flow_run_id, task_run.empirical_policy["retries"]) == (context.flow_run.id, 1)
    assert (task_run.recorded, task_run.state) == (False, None)


def test_identities_spread_over_all_free_bits():
    with in_a_run() as context:
        seen = 0
        for number in range(300):
            seen |= identity(b"%d" % number, context.live).int
    assert bin(seen).count("1") == 128 - 3 - 1  # the version is 1000, the variant 10


# ------------------------------------------------------------------------------------- ends of an earlier execution


class Gone(Exception):
    """An interrupt that leaves the run to be resumed would be a kill; failing and resuming by force is as good."""


def executed_twice(body: Callable[[], Any]) -> tuple[list[Any], State]:
    """Run a flow whose first execution fails at its end, then again; what the body gave each time."""
    given: list[Any] = []

    @flow
    def twice() -> None:
        given.append(body())
        if len(given) == 1:
            raise Gone

    twice(return_state=True)
    run = current_client().read_flow_runs(flow_names=["twice"], sort="created")[-1]
    return given, rerun(twice, run.id, force=True)


@pytest.mark.parametrize("made", [lambda: Completed(data=5), lambda: Completed(message="done")])
def test_a_state_that_the_task_made_by_hand_is_handed_back_as_a_state(made):
    """First run equals replay: the call gives the state itself, and the function is not run again."""
    executed = []

    @task
    def work() -> Any:
        executed.append(1)
        return made()

    (first, second), _ = executed_twice(work)
    assert executed == [1]
    assert isinstance(first, State)
    assert (second.type, second.message) == (first.type, first.message)
    assert second.read_result() == first.read_result()


def test_a_completed_call_is_handed_back_and_not_executed():
    executed = []

    @task
    def work(n: int) -> int:
        executed.append(n)
        return n * 10

    given, state = executed_twice(lambda: [work(1), work(2), work(1)])
    assert given == [[10, 20, 10], [10, 20, 10]]
    assert executed == [1, 2, 1]
    assert state.is_completed()


def test_submitted_and_mapped_calls_are_handed_back_too():
    executed = []

    @task
    def work(n: int, m: int = 0) -> int:
        executed.append(n)
        return n * 10 + m

    def body() -> Any:
        first = work.submit(1)
        second = work.submit(first)  # known by the call of its upstream
        mapped = work.map([5, 6, 7], unmapped(second))
        return first.result(), second.result(), mapped.result()

    given, _ = executed_twice(body)
    assert given[0] == given[1] == (10, 100, [150, 160, 170])
    assert sorted(executed) == [1, 5, 6, 7, 10]


def test_a_subflow_is_handed_back_with_all_that_it_called():
    executed = []

    @task
    def work() -> int:
        executed.append("task")
        return 1

    @flow
    def child(n: int) -> int:
        executed.append("child")
        return work() + n

    given, _ = executed_twice(lambda: child(1))
    assert given == [2, 2]
    assert executed == ["child", "task"]


def test_what_none_was_returned_by_is_handed_back_too():
    executed = []

    @task
    def nothing() -> None:
        executed.append(1)

    assert executed_twice(nothing)[0] == [None, None]
    assert executed == [1]


def test_a_state_by_hand_that_completed_without_data_is_not_executed_again():
    executed = []

    @task
    def by_hand() -> Any:
        executed.append(1)
        return Completed(message="mine")

    executed_twice(lambda: by_hand(return_state=True).message)
    assert executed == [1]


def test_a_call_whose_result_was_not_kept_is_executed_again(monkeypatch):
    executed = []

    @task
    def lock() -> Any:
        executed.append(1)
        return threading.Lock()

    with pytest.warns(RuntimeWarning, match="'lock.*' cannot be kept for re-execution"):
        executed_twice(lock)
    assert executed == [1, 1]


class Vanishing:
    """A class that is gone in the second execution."""


def test_a_result_that_cannot_be_rebuilt_is_executed_again_with_a_warning(monkeypatch):
    executed = []

    @task
    def work() -> Any:
        executed.append(1)
        return Vanishing() if len(executed) == 1 else "rebuilt"

    def body() -> str:
        name = type(work()).__name__
        monkeypatch.delitem(globals(), "Vanishing", raising=False)
        return name

    with pytest.warns(RuntimeWarning, match="'work' completed, but is run again"):
        given, _ = executed_twice(body)
    assert given == ["Vanishing", "str"]


def test_an_edited_task_is_handed_back_with_one_warning(monkeypatch):
    executed = []

    @task
    def work(n: int) -> int:
        executed.append(n)
        return n

    def body() -> Any:
        found = [work(1), work(2)]
        work.source_digest = work.source_digest.partition("-")[0] + "-edited"
        return found

    with pytest.warns(RuntimeWarning, match="the code of task 'work' changed") as caught:
        executed_twice(body)
    assert len([each for each in caught if "changed" in str(each.message)]) == 1
    assert executed == [1, 2]


def test_code_that_another_python_compiled_is_not_taken_for_edited():
    @task
    def work() -> int:
        return 1

    def body() -> Any:
        found = work()
        work.source_digest = "py0.0-other"
        return found

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        executed_twice(body)


def test_a_new_version_is_executed_and_warns_of_nothing():
    executed = []

    def work(n: int) -> int:
        executed.append(n)
        return n

    versions = iter("12")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        executed_twice(lambda: task(version=next(versions))(work)(1))
    assert executed == [1, 1]


def test_a_call_that_the_log_does_not_have_has_no_earlier_end():
    with in_a_run() as context:
        assert earlier_end(context.live, UUID(int=1), "add") == (None, False)
