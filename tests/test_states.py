# SPDX-License-Identifier: Apache-2.0
"""States: fields, constructors, predicates, comparison, results, and how values and errors become states.

The numbers in the headings are those of the behaviour document, section 1.
"""

from __future__ import annotations

import asyncio
import copy
from datetime import datetime, timedelta, timezone
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microflow import states
from microflow._waits import RUN_IS_ASYNC
from microflow.exceptions import (
    CancelledRun,
    CrashedRun,
    FailedRun,
    MissingResult,
    PausedRun,
    TerminationSignal,
    UnfinishedRun,
)
from microflow.states import (
    TERMINAL_STATES,
    AwaitingConcurrencySlot,
    AwaitingRetry,
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    InfrastructurePending,
    Late,
    Paused,
    Pending,
    Retrying,
    Running,
    Scheduled,
    State,
    StateDetails,
    StateGroup,
    StateType,
    Submitting,
    Suspended,
    Value,
    aget_state_exception,
    araise_state_exception,
    exception_to_crashed_state,
    exception_to_failed_state,
    get_state_exception,
    is_states,
    raise_state_exception,
    return_value_to_state,
)
from tests.behaviour_support import pins

NOW = datetime(2025, 11, 21, 3, 4, 5, 678901, timezone.utc)
LATER = NOW + timedelta(hours=1)
OPEN = [Pending, Running, Cancelling, Scheduled]
FAILURES = [(Failed, FailedRun), (Crashed, CrashedRun), (Cancelled, CancelledRun)]
SCHEDULED = [Scheduled, AwaitingRetry, Late, AwaitingConcurrencySlot]

CONSTRUCTORS = {
    Scheduled: ("SCHEDULED", "Scheduled"),
    AwaitingRetry: ("SCHEDULED", "AwaitingRetry"),
    Late: ("SCHEDULED", "Late"),
    AwaitingConcurrencySlot: ("SCHEDULED", "AwaitingConcurrencySlot"),
    Pending: ("PENDING", "Pending"),
    Submitting: ("PENDING", "Submitting"),
    InfrastructurePending: ("PENDING", "InfrastructurePending"),
    Running: ("RUNNING", "Running"),
    Retrying: ("RUNNING", "Retrying"),
    Completed: ("COMPLETED", "Completed"),
    Failed: ("FAILED", "Failed"),
    Crashed: ("CRASHED", "Crashed"),
    Cancelled: ("CANCELLED", "Cancelled"),
    Cancelling: ("CANCELLING", "Cancelling"),
    Paused: ("PAUSED", "Paused"),
    Suspended: ("PAUSED", "Suspended"),
}


def of_a_run(state: State, **details) -> State:
    """The state as a run's: its details name the run."""
    state.state_details.task_run_id = uuid4()
    return state


# ----------------------------------------------------------------------------------- 1.1 types and fields


def test_the_nine_types_are_strings_whose_value_is_their_name():
    assert [kind.name for kind in StateType] == [kind.value for kind in StateType] == [str(kind) for kind in StateType]
    assert len(StateType) == 9
    assert StateType.RUNNING == "RUNNING"


def test_four_types_are_final():
    assert {kind.value for kind in TERMINAL_STATES} == {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
    assert {kind for kind in StateType if State(kind).is_final()} == TERMINAL_STATES


def test_a_type_may_be_given_as_text_and_an_unknown_one_is_named():
    assert State("RUNNING").type is StateType.RUNNING
    with pytest.raises(ValueError, match="'DONE' is not a state type"):
        State("DONE")


@pytest.mark.parametrize("kind", StateType)
def test_the_default_name_is_the_capitalised_type(kind):
    assert State(kind).name == kind.value.capitalize()


def test_a_scheduled_state_without_a_time_is_due_at_its_own_timestamp():
    state: State = State("SCHEDULED", timestamp=NOW)
    assert state.state_details.scheduled_time == NOW
    assert State("PENDING").state_details.scheduled_time is None


def test_details_that_were_handed_in_are_not_changed_by_a_state():
    details = StateDetails(pause_key="k")
    State("SCHEDULED", state_details=details)
    assert details == StateDetails(pause_key="k")


def test_details_take_their_fields_by_name_and_refuse_others():
    details = StateDetails(cache_key="c", pause_timeout=NOW)
    assert (details.cache_key, details.pause_timeout) == ("c", NOW)
    assert (details.flow_run_id, details.untrackable_result, details.pause_reschedule) == (None, False, False)
    with pytest.raises(TypeError, match="StateDetails has no field 'colour'"):
        StateDetails(colour="red")


def test_details_compare_by_what_differs_from_the_defaults():
    assert StateDetails(pause_key=None, pause_reschedule=False) == StateDetails()
    assert StateDetails(pause_key="a") != StateDetails(pause_key="b")
    assert repr(StateDetails(pause_key="a")) == "StateDetails(pause_key='a')"
    twin = (details := StateDetails(pause_key="a")).copy()
    twin.pause_key = "b"
    assert details.pause_key == "a"


# ----------------------------------------------------------------------------------- 1.2 constructors


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_a_constructor_gives_its_type_and_name_and_no_message(constructor):
    state = constructor()
    assert (state.type.value, state.name) == CONSTRUCTORS[constructor]
    assert state.message is None


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_a_constructor_hands_its_arguments_to_the_state(constructor):
    class Mine(State):
        pass

    state = constructor(cls=Mine, message="m", timestamp=NOW, data=5, name="Other", state_details={"cache_key": "c"})
    assert type(state) is Mine
    assert (state.message, state.timestamp, state.data, state.name) == ("m", NOW, 5, "Other")
    assert state.state_details.cache_key == "c"


@pytest.mark.parametrize("constructor", SCHEDULED)
def test_a_scheduled_time_is_taken_from_either_place_but_not_from_both(constructor):
    details = {"scheduled_time": LATER}
    assert constructor(scheduled_time=LATER).state_details.scheduled_time == LATER
    assert constructor(state_details=details).state_details.scheduled_time == LATER
    before = datetime.now(timezone.utc)
    assert before <= constructor().state_details.scheduled_time <= datetime.now(timezone.utc)
    with pytest.raises(ValueError, match="scheduled_time"):
        constructor(scheduled_time=NOW, state_details=details)


def test_details_handed_to_a_scheduled_or_paused_state_are_not_changed():
    details = StateDetails(cache_key="c")
    Scheduled(scheduled_time=LATER, state_details=details)
    Paused(timeout_seconds=1, state_details=details)
    assert details == StateDetails(cache_key="c")


def test_a_pause_ends_after_its_timeout_or_at_its_moment_or_never():
    before = datetime.now(timezone.utc)
    deadline = Paused(timeout_seconds=60).state_details.pause_timeout
    assert before + timedelta(seconds=60) <= deadline <= datetime.now(timezone.utc) + timedelta(seconds=60)
    assert Paused(pause_expiration_time=LATER).state_details.pause_timeout == LATER
    assert Paused().state_details.pause_timeout is None
    assert Paused(timeout_seconds=0).state_details.pause_timeout is not None


def test_a_pause_with_two_deadlines_is_refused():
    with pytest.raises(ValueError, match="either timeout_seconds or pause_expiration_time"):
        Paused(timeout_seconds=1, pause_expiration_time=LATER)
    with pytest.raises(ValueError, match="pause_timeout"):
        Paused(state_details={"pause_timeout": LATER})


def test_a_suspended_state_is_a_pause_that_is_to_be_scheduled_again():
    paused, suspended = Paused(pause_key="k", reschedule=True), Suspended(pause_key="k")
    assert paused.state_details == suspended.state_details == StateDetails(pause_key="k", pause_reschedule=True)
    assert suspended.is_paused()
    assert Paused().state_details.pause_reschedule is False


# ----------------------------------------------------------------------------------- 1.3 methods


@pytest.mark.parametrize("kind", StateType)
def test_exactly_the_predicate_of_its_type_holds_whatever_the_name(kind):
    state: State = State(kind, name="Some name")
    predicates = {one: getattr(state, f"is_{one.value.lower()}")() for one in StateType}
    assert predicates == {one: one is kind for one in StateType}


def test_not_ready_is_a_pending_state_of_that_name():
    assert Pending(name="NotReady").is_not_ready()
    assert not Pending().is_not_ready()
    assert not Failed(name="NotReady").is_not_ready()


def test_states_compare_by_their_fields_and_not_by_their_id():
    assert Completed(timestamp=NOW, data=1, id=uuid4()) == Completed(timestamp=NOW, data=1, id=uuid4())
    for other in (
        Failed(timestamp=NOW, data=1),
        Completed(timestamp=LATER, data=1),
        Completed(timestamp=NOW, data=2),
        Completed(timestamp=NOW, data=1, message="m"),
        Completed(timestamp=NOW, data=1, name="Cached"),
        Completed(timestamp=NOW, data=1, state_details={"cache_key": "c"}),
    ):
        assert Completed(timestamp=NOW, data=1) != other
    assert Completed() != 5


def test_a_state_equals_a_dict_of_its_fields_and_no_other_dict():
    state = Completed(timestamp=NOW, data=1)
    fields = {
        "type": "COMPLETED",
        "name": "Completed",
        "message": None,
        "timestamp": NOW,
        "state_details": StateDetails(),
        "data": 1,
    }
    assert state == fields
    assert state == {**fields, "id": "not looked at"}
    assert state != {**fields, "data": 2}
    assert state != {**fields, "colour": "red"}
    assert state != {"type": "COMPLETED"}
    assert state != {}


def test_a_state_hashes_by_run_moment_and_type():
    details = {"flow_run_id": UUID(int=1)}
    one, two = (Completed(timestamp=NOW, state_details=details, data=data) for data in (1, [2]))
    assert hash(one) == hash(two)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (Completed(), "Completed()"),
        (Completed(message="hi"), "Completed('hi')"),
        (Completed(message=""), "Completed()"),
        (Completed(name="Cached"), "Cached(type=COMPLETED)"),
        (Failed(name="TimedOut", message="late"), "TimedOut('late', type=FAILED)"),
        (Completed(name="COMPLETED"), "COMPLETED()"),
    ],
)
def test_a_state_as_text(state, text):
    assert str(state) == text


def test_a_state_shows_message_type_and_data():
    assert repr(Completed(message="m", data=5)) == "Completed(message='m', type=COMPLETED, result=5)"


def test_the_id_of_a_runs_state_follows_from_run_and_moment():
    details = {"flow_run_id": UUID(int=1)}
    one, two = (Completed(timestamp=NOW, state_details=details) for _ in range(2))
    assert one.id == two.id
    assert Completed(timestamp=LATER, state_details=details).id != one.id
    assert Completed(timestamp=NOW, state_details={"task_run_id": UUID(int=2), **details}).id != one.id


def test_a_state_of_no_run_has_an_id_of_its_own_or_the_given_one():
    state = Completed()
    assert state.id == state.id != Completed().id
    assert Completed(id=UUID(int=5)).id == UUID(int=5)


def test_the_timestamp_can_be_set_and_is_utc():
    state = Completed()
    state.timestamp = LATER
    assert (state.timestamp, state.created, state.updated) == (LATER, LATER, LATER)
    assert Completed(timestamp=datetime(2025, 1, 1)).timestamp == datetime(2025, 1, 1, tzinfo=timezone.utc)


def test_a_copy_has_the_fields_but_the_moment_and_details_of_its_own():
    state = Failed(message="m", timestamp=NOW, data=[1], state_details={"cache_key": "c"})
    for twin in (state.fresh_copy(), state.model_copy()):
        assert (twin.type, twin.name, twin.message, twin.data) == (state.type, "Failed", "m", [1])
        assert twin.timestamp > NOW
        assert twin.id != state.id
        twin.state_details.cache_key = "other"
    assert state.state_details.cache_key == "c"
    other = state.model_copy(update={"message": "n", "timestamp": LATER})
    assert (other.message, other.timestamp, other.name) == ("n", LATER, "Failed")


def test_a_state_can_be_copied_by_the_copy_module():
    state = Completed(timestamp=NOW, data=[1])
    assert copy.copy(state) == copy.deepcopy(state) == state


# ----------------------------------------------------------------------------------- 1.4 result()


@pins("task_engine", 86)
@pytest.mark.parametrize("raise_on_failure", [True, False])
def test_a_paused_state_raises_paused_run_with_the_state(raise_on_failure):
    state = Paused(data=5)
    with pytest.raises(PausedRun, match="result is not available") as caught:
        state.result(raise_on_failure)
    assert caught.value.state is state


@pytest.mark.parametrize("raise_on_failure", [True, False])
@pytest.mark.parametrize("constructor", OPEN)
def test_an_open_state_raises_unfinished_run_naming_its_type(constructor, raise_on_failure):
    with pytest.raises(UnfinishedRun, match=CONSTRUCTORS[constructor][0]):
        constructor(data=5).result(raise_on_failure)


@pytest.mark.parametrize(("constructor", "wrapper"), FAILURES)
def test_a_failed_state_raises_its_exception_or_gives_it_back(constructor, wrapper):
    error = ValueError("x")
    with pytest.raises(ValueError) as caught:
        constructor(data=error).result()
    assert caught.value is error
    assert constructor(data=error).result(raise_on_failure=False) is error
    assert isinstance(constructor().result(raise_on_failure=False), wrapper)
    assert constructor(data=True).result(raise_on_failure=False) is True


def test_a_completed_state_gives_its_data_whatever_that_is():
    for value in (1, [], ValueError("returned, not raised"), False):
        assert Completed(data=value).result() == value
        assert Completed(data=Value(value)).result() == value
    assert Completed(data=Value(None)).result() is None


@pytest.mark.parametrize("raise_on_failure", [True, False])
def test_a_completed_state_without_data_raises_missing_result(raise_on_failure):
    with pytest.raises(MissingResult, match="not kept"):
        Completed().result(raise_on_failure)


def test_result_is_a_plain_call_in_blocking_code_and_a_coroutine_on_a_loop_unless_told_otherwise():
    state = Completed(data=5)

    async def main():
        assert await state.result() == 5  # type: ignore[misc]  # on a loop it is awaitable
        assert await state.aresult() == 5
        assert state.result(_sync=True) == 5
        RUN_IS_ASYNC.set(False)  # as in a blocking run that was started from here
        assert state.result() == 5

    asyncio.run(main())
    assert state.result(retry_result_failure=False) == 5


# ----------------------------------------------------------------------------------- 1.5 state to exception


@pins("task_engine", 84)
@pytest.mark.parametrize(("constructor", "wrapper"), FAILURES)
def test_without_data_the_exception_says_the_message_or_a_default(constructor, wrapper):
    default = f"Run {CONSTRUCTORS[constructor][0].lower()}."
    assert (type(get_state_exception(constructor())), str(get_state_exception(constructor()))) == (wrapper, default)
    assert str(get_state_exception(constructor(message="m"))) == "m"


@pytest.mark.parametrize(("constructor", "wrapper"), FAILURES)
def test_text_as_data_is_the_text_of_the_exception(constructor, wrapper):
    error = get_state_exception(constructor(data=Value("why")))
    assert (type(error), str(error)) == (wrapper, "why")


def test_a_base_exception_as_data_is_the_exception():
    error = KeyboardInterrupt()
    assert get_state_exception(Crashed(data=error)) is error


@pins("task_engine", 85)
@pytest.mark.parametrize("kind", [list, tuple, set])
def test_states_as_data_give_the_exception_of_the_first_that_failed(kind):
    error = ValueError("inner")
    assert get_state_exception(Failed(data=Failed(data=error))) is error
    assert get_state_exception(Failed(data=kind([Failed(data=error, timestamp=NOW)]))) is error
    assert get_state_exception(Failed(data=[Completed(), Crashed(data=error), Failed()])) is error
    with pytest.raises(ValueError, match="none were failed"):
        get_state_exception(Failed(data=kind([Completed()])))


@pytest.mark.parametrize("data", [5, [], [Completed(), 1], {"a": Failed()}])
def test_other_data_cannot_be_resolved_into_an_exception(data):
    with pytest.raises(TypeError, match="cannot be resolved into an exception"):
        get_state_exception(Failed(data=data))


@pytest.mark.parametrize("state", [Completed(), Running(), Paused()])
def test_a_state_that_did_not_fail_has_no_exception_and_raises_none(state):
    with pytest.raises(ValueError, match="Expected failed or crashed state got"):
        get_state_exception(state)
    raise_state_exception(state)
    asyncio.run(araise_state_exception(state))


def test_the_coroutine_forms_do_the_same():
    assert str(asyncio.run(aget_state_exception(Failed(message="m")))) == "m"
    with pytest.raises(FailedRun):
        asyncio.run(araise_state_exception(Failed()))
    with pytest.raises(CancelledRun):
        raise_state_exception(Cancelled())


# ----------------------------------------------------------------------------------- 1.6 value to state


def test_a_state_made_by_hand_is_used_as_it_is_with_its_data_wrapped():
    state = Failed(message="m", data="why")
    assert return_value_to_state(state) is state
    assert state.data == Value("why")
    wrapped = Completed(data=Value(1))
    assert return_value_to_state(wrapped).data == Value(1)


def test_a_completed_state_by_hand_without_data_stands_for_none():
    assert return_value_to_state(Completed()).result() is None


def test_an_exception_as_data_of_a_state_by_hand_stays_an_exception():
    error = ValueError()
    assert return_value_to_state(Failed(data=error)).data is error


def test_a_failed_state_by_hand_without_data_keeps_its_message_as_the_reason():
    state = return_value_to_state(Failed(message="why"))
    with pytest.raises(FailedRun, match="why"):
        state.result()


@pins("task_engine", 80)
@pytest.mark.parametrize(
    ("members", "kind", "message"),
    [
        ([Completed, Completed], "COMPLETED", "All states completed."),
        ([Completed, Cancelled, Failed], "CANCELLED", "1/3 states cancelled."),
        ([Completed, Paused, Failed], "PAUSED", "1/3 states paused."),
        ([Completed, Failed, Crashed], "FAILED", "2/3 states failed."),
        ([Running, Failed], "FAILED", "1/2 states failed."),
        ([Completed, Running, Pending], "FAILED", "2/3 states not final."),
    ],
)
def test_states_of_runs_are_aggregated(members, kind, message):
    members = [constructor() for constructor in members]
    for collection in (members, tuple(members)):
        state = return_value_to_state(collection)
        assert (state.type, state.message) == (kind, message)
        assert state.data.load() is collection


@pins("task_engine", 83)
def test_one_state_of_a_run_is_aggregated_alone():
    inner = of_a_run(Failed())
    state = return_value_to_state(inner)
    assert (state.type, state.message) == (StateType.FAILED, "1/1 states failed.")
    assert state is not inner
    assert state.data.load() is inner


@pins("task_engine", 80)
@pytest.mark.parametrize("value", [None, 0, [], (), {}, {"a": Failed()}, [Failed(), 1], ValueError("returned")])
def test_anything_else_is_a_value_of_a_completed_run(value):
    state = return_value_to_state(value)
    assert (state.type, state.message) == (StateType.COMPLETED, None)
    assert state.result() is value


def test_a_generator_is_exhausted_and_an_iterator_is_not():
    assert return_value_to_state(n for n in range(3)).result() == [0, 1, 2]
    iterator = iter([1])
    assert return_value_to_state(iterator).result() is iterator


def test_a_value_is_not_wrapped_twice():
    value = Value(1)
    assert return_value_to_state(value).data is value


def test_what_counts_as_states():
    assert is_states([Completed()])
    assert is_states({Completed()})
    assert not is_states([])
    assert not is_states([Completed(), 1])
    assert not is_states({"a": Completed()})


def test_a_group_counts_its_states():
    group = StateGroup([Completed(), Failed(), Crashed(), Cancelled(), Running(), Paused()])
    assert (group.total_count, group.final_count, group.not_final_count) == (6, 4, 2)
    assert (group.cancelled_count, group.paused_count, group.fail_count) == (1, 1, 2)
    assert (group.any_cancelled(), group.any_failed(), group.any_paused()) == (True, True, True)
    assert not group.all_completed()
    assert not group.all_final()
    assert StateGroup([Completed()]).all_completed()
    assert StateGroup([Completed(), Failed()]).all_final()


def test_the_counts_of_a_group_in_words():
    group = StateGroup([Failed(), Completed(), Running(), Pending()])
    assert group.counts_message() == "total=4, not_final=2, 'FAILED'=1, 'COMPLETED'=1, 'RUNNING'=1, 'PENDING'=1"
    assert StateGroup([Failed()]).counts_message() == "total=1, 'FAILED'=1"


@given(st.lists(st.sampled_from(StateType), min_size=1))
def test_an_aggregate_completes_only_if_all_do_and_is_always_final_or_paused(kinds):
    kind, message = StateGroup(State(one) for one in kinds).aggregate()
    assert (kind is StateType.COMPLETED) == (set(kinds) == {StateType.COMPLETED})
    assert kind in TERMINAL_STATES | {StateType.PAUSED}
    assert message


# ----------------------------------------------------------------------------------- 1.7 exception to state


def test_a_failed_state_describes_the_exception_after_the_message():
    error = ValueError("bad value")
    state = exception_to_failed_state(error, message="Task run encountered an exception:")
    assert state.message == "Task run encountered an exception: ValueError: bad value"
    assert (state.type, state.data) == (StateType.FAILED, error)
    assert exception_to_failed_state(KeyError()).message == "KeyError"
    assert exception_to_failed_state(error, name="TimedOut").name == "TimedOut"


def test_an_exception_that_cannot_be_shown_is_described_all_the_same():
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert exception_to_failed_state(Broken()).message == "Broken (whose text cannot be shown)"


def test_the_exception_that_is_being_handled_is_the_default():
    with pytest.raises(ValueError, match="no active exception"):
        exception_to_failed_state()
    error = KeyError("k")
    try:
        raise error
    except KeyError:
        assert exception_to_failed_state().data is error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (asyncio.CancelledError(), "cancelled by the runtime environment"),
        (KeyboardInterrupt(), "Execution was aborted by an interrupt signal"),
        (TerminationSignal(15), "Execution was aborted by a termination signal"),
        (SystemExit(1), "Execution was aborted by a system exit call"),
        (GeneratorExit("g"), "Execution was interrupted by an unexpected exception: GeneratorExit: g"),
    ],
)
def test_a_crashed_state_says_what_interrupted(error, words):
    state = exception_to_crashed_state(error)
    assert state.is_crashed()
    assert words in (state.message or "")
    assert state.data is error


# ----------------------------------------------------------------------------------- values


def test_a_value_compares_by_what_it_holds_and_shows_it():
    assert Value(1) == Value(1)
    assert Value(1) != Value(2)
    assert Value(1) != 1
    assert Value(None).result is None
    assert repr(Value("a")) == "Value('a')"


def test_every_public_name_of_the_module_has_a_docstring():
    for name, thing in vars(states).items():
        if not name.startswith("_") and getattr(thing, "__module__", "") == states.__name__:
            assert thing.__doc__, name
