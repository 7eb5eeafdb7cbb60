# SPDX-License-Identifier: Apache-2.0
"""A flow as an AWS Lambda handler: ``handler = lambda_handler(flow, key=…)``.

Goal: a flow run that takes longer than an invocation goes on in the next one, in any execution environment that has
the same home; an event that is delivered twice starts one run; nothing of ours is alive when the answer is given, for
Lambda freezes the process then and thaws it in somebody else's invocation.

What does not work: relying on signals or ``atexit`` (a function that times out gets none; SIGTERM, where an extension
has one sent, is followed by SIGKILL within half a second), on a heartbeat thread (it
is frozen as well), on ids drawn at import (SnapStart clones them).

The rule: the log is the state, as everywhere. Before the deadline, less a margin, the run is asked to suspend; it does
so at its next boundary, where it would start something, and the answer says how to go on. SIGTERM while a run is on
asks for the same at once, since the environment ends; a handler of the program's own is called after that::

    {"status": "suspended", "flow_run_id": "…", "continue": {"microflow": {"action": "resume", …}}}

An invocation that is killed leaves a run without an owner, which the next delivery of its event, or a resume, goes
on with. Events::

    {"microflow": {"action": "start", "parameters": {…}, "key": "…"}}     any other event: a start, see lambda_handler
    {"microflow": {"action": "resume", "flow_run_id": "…", "input": {…}}}
    {"microflow": {"action": "status", "flow_run_id": "…"}}
    {"microflow": {"action": "cancel", "flow_run_id": "…"}}

An event can name runs of the handler's own flow only, and never code. Known holes: plain code between two boundaries is
not interrupted, so a margin that is shorter than the longest task is a hope; owners are known alive by locks on files,
so environments that share a home need a file system on which those work.
"""

from __future__ import annotations

import json
import signal
import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ..client.fold import shown
from ..client.objects import id_of_key
from ..client.orchestration import current_client
from ..exceptions import (
    Abort,
    Conflict,
    MicroflowException,
    NotPausedError,
    Pause,
    RunningElsewhere,
)
from ..flow_engine import run_to_state
from ..flow_runs import check_flow_fits, take_over
from ..logging import get_logger
from ..serializers import to_json
from ..states import Pending, Suspended

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from ..client.live import LiveRun
    from ..flows import Flow
    from ..states import State

    Event = Any
    Answer = dict[str, Any]

#: bytes of JSON that a synchronous answer may have, less room for the rest of the answer
LARGEST_RESULT = 6 * 1024 * 1024 - 64 * 1024
_DEADLINE = "lambda-deadline"
_RETRY = 0.05  # seconds between two requests to suspend


class InvalidEvent(MicroflowException):
    """The event asks for something that this handler cannot do."""


class PayloadMismatch(MicroflowException):
    """A run was started under this key before, with other parameters."""


def lambda_handler(
    flow: Flow[Any, Any],
    *,
    key: Callable[[Any, Any], str | None] | None = None,
    parameters: Callable[[Any], dict[str, Any]] | None = None,
    margin: float | None = None,
    continue_with: Callable[[dict[str, Any]], object] | None = None,
    max_hops: int = 10,
) -> Callable[[Any, Any], dict[str, Any]]:
    """The handler that runs `flow`: a function of event and context.

    `key(event, context)` names a start: a second event with the same key is answered with the run that the first one
    started, whatever became of it meanwhile, and goes on with it when its process was killed or its time ran out;
    PayloadMismatch when its parameters differ. Without a key every event starts a run. `parameters(event)` gives the
    flow's parameters, the event itself unless given. `margin` is how many seconds before the deadline the run is
    suspended, by default 1.5 or a twentieth of the invocation, whichever is more. `continue_with` is called with the
    event that goes on with a run whose time ran out, to send it to a queue or to the function itself; at most
    `max_hops` times in a row, since a run that never gets on would invoke for ever. What it raises is logged, and the
    answer says ``"continued": false``.

    Called by hand, as in a test, the handler takes None as the context: then there is no deadline.

    The handler raises what is wrong with an event (InvalidEvent, PayloadMismatch, what the flow's validation raises)
    before anything is recorded. A flow that fails is an answer, ``{"status": "failed", …}``, not an exception: Lambda
    would deliver the event again. The items of a generator flow are consumed, and are no part of the answer."""
    invocation = _Invocation(flow, key, parameters, margin, continue_with, max_hops)

    def handler(event: Any, context: Any) -> dict[str, Any]:
        return invocation.answer(event, context)

    return handler


class _Invocation:
    """What all invocations of one handler share: its options. No state is kept between them."""

    def __init__(
        self,
        flow: Flow[Any, Any],
        key: Callable[[Any, Any], str | None] | None,
        parameters: Callable[[Any], dict[str, Any]] | None,
        margin: float | None,
        continue_with: Callable[[dict[str, Any]], object] | None,
        max_hops: int,
    ) -> None:
        self.flow = flow
        self.key = key
        self.parameters = parameters
        self.margin = margin
        self.continue_with = continue_with
        self.max_hops = max_hops

    def answer(self, event: Event, context: Any) -> Answer:
        if context is not None and not hasattr(context, "get_remaining_time_in_millis"):
            raise TypeError(f"the context must be that of AWS Lambda, or None for no deadline; got {context!r}")
        envelope = event.get("microflow") if isinstance(event, dict) else None
        if envelope is None:
            given = self.parameters(event) if self.parameters is not None else event
            return self._start(given, self.key(event, context) if self.key is not None else None, context)
        if not isinstance(envelope, dict):
            raise InvalidEvent(f"event['microflow'] must be an object with an action, got {envelope!r}")
        action = envelope.get("action")
        if action == "start":
            return self._start(envelope.get("parameters") or {}, envelope.get("key"), context)
        if action not in ("resume", "status", "cancel"):
            raise InvalidEvent(f"event['microflow']['action'] must be start, resume, status or cancel, got {action!r}")
        run_id = self._run_id(envelope.get("flow_run_id"))
        if action == "cancel":
            current_client().cancel_flow_run(run_id)
        elif action == "resume":
            return self._go_on(run_id, context, envelope.get("input"), _hops(envelope), resume=True)
        return self._report(run_id)

    def _run_id(self, given: Any) -> str:
        try:
            run_id = str(UUID(given))
        except (ValueError, TypeError, AttributeError):
            raise InvalidEvent(f"event['microflow']['flow_run_id'] must be a flow run's id, got {given!r}") from None
        check_flow_fits(current_client().fold(run_id), self.flow)
        return run_id

    # ------------------------------------------------------------------------------------------------ run

    def _start(self, given: Any, key: str | None, context: Any) -> Answer:
        if not isinstance(given, dict):
            raise InvalidEvent(
                f"the event must be an object whose members are the parameters of flow {self.flow.name!r}, got "
                f"{type(given).__name__}; give lambda_handler a `parameters` function that makes such an object"
            )
        client, flow = current_client(), self.flow
        parameters = flow.bind((), given)
        if flow.should_validate_parameters:
            parameters = flow.validate_parameters(parameters)
        run_id = None if key is None else _run_of_key(flow.name, key)
        run = client.new_flow_run(flow, id=run_id, idempotency_key=key)
        try:
            live = client.start(run, flow, parameters, Pending(), own=True)
        except Conflict:
            assert run_id is not None
            recorded = client.fold(str(run_id))
            if to_json(recorded.parameters()) != to_json(parameters):
                raise PayloadMismatch(
                    f"flow run {run_id} was started under the key {key!r} with other parameters: "
                    f"{recorded.flow_run.parameters}. Use a key of its own for each payload"
                ) from None
            return self._go_on(str(run_id), context, None, 0, resume=False)
        return self._run(live, parameters, context, 0)

    def _go_on(self, run_id: str, context: Any, given: Any, hops: int, *, resume: bool) -> Answer:
        """Go on with a run that nobody runs. Without `resume` only one whose time ran out or whose process died."""
        client = current_client()
        state = client.fold(run_id).flow_run.state
        if state is not None and state.is_paused() and (resume or _ran_out_of_time(state)):
            try:
                client.resume_flow_run(run_id, given, queue=False)
            except NotPausedError:  # another environment was quicker, and runs it now
                return self._report(run_id)
        elif state is not None and (state.is_paused() or state.is_final()):
            return self._report(run_id)
        try:
            live, parameters, _ = take_over(self.flow, run_id)
        except (RunningElsewhere, NotPausedError):
            return self._report(run_id)
        return self._run(live, parameters, context, hops)

    def _run(self, live: LiveRun, parameters: dict[str, Any], context: Any, hops: int) -> Answer:
        """Run a run that this invocation owns, until it ends or is suspended."""
        outcome: Any = None
        with _Deadline(live, context, self.margin) as deadline:
            try:
                outcome = run_to_state(self.flow, parameters, live)
                if self.flow.isasync:
                    import asyncio  # only for coroutine flows

                    outcome = asyncio.run(outcome)
            except (Pause, Abort):  # suspended or cancelled: the log says so
                pass
            except Exception:
                # the run could not even begin, or was fenced: an answer if the log has an end for it
                state = current_client().read_flow_run(live.run_id).state
                if state is None or not state.is_final():
                    raise
        answer = self._report(live.run_id, outcome)
        state = current_client().fold(live.run_id).flow_run.state
        if state is not None and _ran_out_of_time(state):
            self._continue(answer, hops)
        deadline.pass_on()
        return answer

    def _continue(self, answer: Answer, hops: int) -> None:
        """Say how to go on, and have it sent if somebody knows how."""
        event = {"microflow": {"action": "resume", "flow_run_id": answer["flow_run_id"], "hops": hops + 1}}
        answer["continue"] = event
        if self.continue_with is None:
            return
        answer["continued"] = False
        if hops >= self.max_hops:
            answer["reason"] = f"the run was continued {hops} times in a row, and max_hops is {self.max_hops}"
            return
        try:
            self.continue_with(event)
        except Exception as error:  # the user's sender: the run is safe, and the caller is told
            get_logger("aws_lambda").exception("continue_with raised for flow run %s", answer["flow_run_id"])
            answer["reason"] = f"continue_with raised {type(error).__name__}: {error}"
        else:
            answer["continued"] = True

    # --------------------------------------------------------------------------------------------- answer

    def _report(self, run_id: str, ended: State[Any] | None = None) -> Answer:
        """How the run stands. `ended` is its final state if it ended here: with the value, however large."""
        client = current_client()
        run = client.fold(run_id)
        state = client.read_flow_run(run_id).state
        answer: Answer = {"status": _status(state), "flow_run_id": run_id, "state": str(state)}
        if state is not None and state.is_completed():
            answer.update(_NO_ITEMS if self.flow.isgenerator else _result(ended or run.flow_run.state))
        elif state is not None and state.is_final():
            answer["error"] = state.message
        client.store.close(run_id)
        return answer


_NO_ITEMS = {"result": None, "reason": "the items of a generator flow are not kept; return a list to have them here"}


def _ran_out_of_time(state: State[Any]) -> bool:
    """Whether the run was suspended by a deadline, and waits for nothing but another invocation."""
    return state.is_paused() and (state.state_details.pause_key or "").startswith(_DEADLINE)


def _hops(envelope: dict[str, Any]) -> int:
    hops = envelope.get("hops", 0)
    if isinstance(hops, bool) or not isinstance(hops, int) or hops < 0:
        raise InvalidEvent(f"event['microflow']['hops'] must be a whole number, got {hops!r}")
    return hops


def _run_of_key(flow_name: str, key: str) -> UUID:
    """The id of the run that a key names, the same in every execution environment."""
    if not isinstance(key, str):
        raise InvalidEvent(f"the key of a start must be a text, got {key!r}")
    return id_of_key(flow_name, key)


def _status(state: State[Any] | None) -> str:
    if state is None or state.is_pending() or state.is_running():
        return "running"
    if state.is_paused():
        return "suspended" if state.is_suspended() else "paused"
    return state.type.value.lower()


def _result(state: State[Any] | None) -> dict[str, Any]:
    """The run's value as plain JSON, if it was kept and an answer can carry it."""
    if state is None or state.data is None:
        return {"result": None, "reason": "the log does not keep the result; it may have been too large"}
    try:
        value = shown(to_json(state.data.load() if hasattr(state.data, "load") else state.data))
    except (MicroflowException, ValueError) as problem:
        return {"result": None, "reason": f"the result cannot be carried in an answer: {problem}"}
    size = len(json.dumps(value))
    if size > LARGEST_RESULT:
        return {"result": None, "reason": f"the result has {size:,} bytes, more than an answer may have; read the log"}
    return {"result": value}


class _Deadline:
    """Has the run suspended before the invocation's time is up, or when SIGTERM says so. Its one thread has ended when
    the block is left."""

    def __init__(self, live: LiveRun, context: Any, margin: float | None) -> None:
        self._live = live
        self._seconds: float | None = None
        if context is not None:
            remaining = context.get_remaining_time_in_millis() / 1000
            self._seconds = max(0.0, remaining - (max(1.5, remaining / 20) if margin is None else margin))
        self._why = "The invocation's time ran out."
        self._over = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="microflow lambda deadline")
        self._previous: Any = None
        self._signal: int | None = None

    def _watch(self) -> None:
        self._wake.wait(self._seconds)
        while not self._over.is_set() and not self._suspend():
            # It has not begun yet, or is paused: it is asked again. Who leaves the block says first that it is over.
            self._wake.clear()
            self._wake.wait(0 if self._over.is_set() else _RETRY)

    def _suspend(self) -> bool:
        live = self._live
        state: State[Any] = Suspended(pause_key=f"{_DEADLINE}-{live.epoch}", message=self._why)
        try:
            current_client().suspend_flow_run(live.run_id, state)
        except (MicroflowException, RuntimeError) as refused:
            get_logger("aws_lambda").info("flow run %s is not suspended yet: %s", live.run_id, refused)
            return False
        return True

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM. In the main thread, which takes no lock of the event's while this can be called."""
        self._signal, self._why = number, "The execution environment ends."
        self._wake.set()

    def pass_on(self) -> None:
        """Call the program's own handler of the signal that arrived, if there is one."""
        if self._signal is not None and callable(self._previous):
            self._previous(self._signal, None)

    def __enter__(self) -> _Deadline:
        self._thread.start()
        is_main = threading.current_thread() is threading.main_thread()  # nobody else may
        if is_main and signal.getsignal(signal.SIGTERM) not in (None, signal.SIG_IGN):
            self._previous = signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        self._over.set()
        self._wake.set()
        self._thread.join()
