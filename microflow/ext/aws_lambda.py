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

A run that waits for its retry, or for its time to begin, is left where it stands (``"scheduled"``), with a ``continue``
as well; one that waits in a pause as ``"paused"``, for whoever resumes it. An invocation that is killed leaves a run
without an owner, which the next delivery of its event, or a resume, goes on with. Events::

    {"microflow": {"action": "start", "parameters": {…}, "key": "…"}}     any other event: a start, see lambda_handler
    {"microflow": {"action": "resume", "flow_run_id": "…", "input": {…}}}
    {"microflow": {"action": "status", "flow_run_id": "…"}}
    {"microflow": {"action": "cancel", "flow_run_id": "…"}}

An event can name runs of the handler's own flow only, and never code. A resume of a run that waits for nothing, as one
that is delivered twice, is answered with how the run stands, and its input dropped.

Known holes: plain code between two boundaries is not interrupted, nor is a pause in a task or subflow, nor the delay
before a subflow's retry, so a margin that is shorter than the longest task is a hope; a run whose parameters could not
be kept (more than 1 MiB) is not suspended, and only the next delivery of its event goes on with it; owners are known
alive by locks on files, so environments that share a home need a file system on which those work.
"""

from __future__ import annotations

import json
import math
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ..client.fold import shown
from ..client.objects import id_of_key
from ..client.orchestration import current_client
from ..client.requests import why_not_restartable
from ..entrypoints import why_not_importable
from ..exceptions import (
    Abort,
    ConfigurationError,
    Conflict,
    FlowPauseTimeout,
    MicroflowException,
    NotPausedError,
    Pause,
    RunningElsewhere,
)
from ..flow_engine import run_here
from ..flow_runs import check_flow_fits, take_over
from ..logging import get_logger
from ..serializers import to_json
from ..states import Pending
from .lambda_deadline import Deadline, TimeLeft, ran_out_of_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..client.fold import Run
    from ..client.live import LiveRun
    from ..flows import Flow
    from ..states import State

    Event = Any
    Answer = dict[str, Any]

#: bytes of JSON that a synchronous answer may have, less room for the rest of the answer
LARGEST_RESULT = 6 * 1024 * 1024 - 64 * 1024


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

    TypeError, ValueError or ConfigurationError for options that are no good, and for a flow that is defined where no
    other process finds it: its runs could not be suspended. The handler raises what is wrong with an event
    (InvalidEvent, PayloadMismatch, what the flow's validation raises) before anything is recorded. A flow that fails is
    an answer, ``{"status": "failed", …}``, not an exception: Lambda would deliver the event again. The items of a
    generator flow are consumed, and are no part of the answer."""
    _check_flow(flow)
    _check_options(key, parameters, margin, continue_with, max_hops)
    invocation = _Invocation(flow, key, parameters, margin, continue_with, max_hops)

    def handler(event: Any, context: Any) -> dict[str, Any]:
        return invocation.answer(event, context)

    return handler


def _check_flow(flow: Any) -> None:
    if not hasattr(flow, "flow_run_name"):
        raise TypeError(f"lambda_handler takes a flow, which is a function decorated with @flow; got {flow!r}")
    reason = why_not_importable(flow.fn)
    if reason is not None:
        raise ConfigurationError(
            f"flow {flow.name!r} cannot be a Lambda handler, because its runs could not be suspended at a deadline: "
            f"{reason}. Define it at the top level of a module"
        )


def _check_options(key: Any, parameters: Any, margin: Any, continue_with: Any, max_hops: Any) -> None:
    for name, given in (("key", key), ("parameters", parameters), ("continue_with", continue_with)):
        if given is not None and not callable(given):
            raise TypeError(f"{name} must be a function or None, got {given!r}")
    if margin is not None:
        if isinstance(margin, bool) or not isinstance(margin, (int, float)):
            raise TypeError(f"margin must be a number of seconds or None, got {margin!r}")
        if not (margin >= 0 and math.isfinite(margin)):
            raise ValueError(f"margin must be at least 0 and not infinite, got {margin!r}")
    if isinstance(max_hops, bool) or not isinstance(max_hops, int):
        raise TypeError(f"max_hops must be a whole number, got {max_hops!r}")
    if max_hops < 0:
        raise ValueError(f"max_hops must not be negative, got {max_hops!r}")


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
        time_left = TimeLeft(context, self.margin)
        envelope = event.get("microflow") if isinstance(event, dict) else None
        if envelope is None:
            given = self.parameters(event) if self.parameters is not None else event
            return self._start(given, self.key(event, context) if self.key is not None else None, time_left)
        if not isinstance(envelope, dict):
            raise InvalidEvent(f"event['microflow'] must be an object with an action, got {envelope!r}")
        action = envelope.get("action")
        if action == "start":
            given = envelope.get("parameters")
            if given is not None and not isinstance(given, dict):
                raise InvalidEvent(f"event['microflow']['parameters'] must be an object, got {given!r}")
            return self._start(given or {}, envelope.get("key"), time_left)
        if action not in ("resume", "status", "cancel"):
            raise InvalidEvent(f"event['microflow']['action'] must be start, resume, status or cancel, got {action!r}")
        run_id = self._run_id(envelope.get("flow_run_id"))
        if action == "cancel":
            current_client().cancel_flow_run(run_id)
        elif action == "resume":
            return self._resume(run_id, time_left, _input(envelope), _hops(envelope))
        return self._report(run_id)

    def _run_id(self, given: Any) -> str:
        try:
            run_id = str(UUID(given))
        except (ValueError, TypeError, AttributeError):
            raise InvalidEvent(f"event['microflow']['flow_run_id'] must be a flow run's id, got {given!r}") from None
        check_flow_fits(current_client().fold(run_id), self.flow)
        return run_id

    # ------------------------------------------------------------------------------------------------ run

    def _start(self, given: Any, key: str | None, time_left: TimeLeft) -> Answer:
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
        digest = None if key is None else _digest(given)
        try:
            live = client.start(run, flow, parameters, Pending(), own=True, given=digest)
        except Conflict:
            assert run_id is not None
            recorded = client.fold(str(run_id))
            if _has_other_parameters(recorded, flow, parameters, digest):
                raise PayloadMismatch(
                    f"flow run {run_id} was started under the key {key!r} with other parameters: "
                    f"{recorded.flow_run.parameters}. Use a key of its own for each payload"
                ) from None
            same_event = digest is not None and digest == recorded.header.get("given")
            needed = same_event and recorded.header.get("parameters") is None
            return self._start_again(str(run_id), parameters if needed else None, time_left)
        return self._run(live, parameters, time_left, 0)

    def _start_again(self, run_id: str, parameters: dict[str, Any] | None, time_left: TimeLeft) -> Answer:
        """Answer a start that was delivered before: with how its run stands, and once more with how it went on if its
        time ran out or its process died. `parameters` are those of a run whose log does not keep them."""
        state = current_client().fold(run_id).flow_run.state
        if ran_out_of_time(state):
            return self._resume(run_id, time_left, None, 0)
        if state is None or state.is_paused() or state.is_final():
            return self._report(run_id)
        return self._go_on(run_id, time_left, 0, parameters)

    def _resume(self, run_id: str, time_left: TimeLeft, given: dict[str, Any] | None, hops: int) -> Answer:
        """Let a run go on that waits, and go on with one that nobody runs."""
        client = current_client()
        state = client.fold(run_id).flow_run.state
        if state is not None and state.is_final():
            return self._report(run_id)
        with client.addressed(run_id) as live:
            reason = why_not_restartable(live)
        if reason is not None:
            raise InvalidEvent(f"flow run {run_id} cannot be resumed: {reason}")
        if state is not None and state.is_paused():
            try:
                if state.is_suspended():  # its process leaves first: nobody is to find a run that goes on and has it
                    client.free_run(run_id, patience=time_left.seconds)
                client.resume_flow_run(run_id, given, queue=False)
            except RunningElsewhere:
                return self._report_or_continue(run_id, hops)
            except (NotPausedError, FlowPauseTimeout):  # another environment was quicker, or it is too late
                return self._report(run_id)
            except RuntimeError as problem:  # the input does not fit what the run asks for
                raise InvalidEvent(f"event['microflow']['input']: {problem}") from problem
        return self._go_on(run_id, time_left, hops)

    def _go_on(
        self, run_id: str, time_left: TimeLeft, hops: int, parameters: dict[str, Any] | None = None
    ) -> Answer:
        """Run a run that nobody runs, with the parameters that its log keeps unless they are given."""
        try:
            if parameters is None:
                live, parameters, _ = take_over(self.flow, run_id, patience=time_left.seconds)
            else:
                live = current_client().claim(run_id, patience=time_left.seconds)
        except RunningElsewhere:
            return self._report_or_continue(run_id, hops)
        except NotPausedError:
            return self._report(run_id)
        return self._run(live, parameters, time_left, hops)

    def _run(self, live: LiveRun, parameters: dict[str, Any], time_left: TimeLeft, hops: int) -> Answer:
        """Run a run that this invocation owns, until it ends or leaves."""
        client, outcome = current_client(), None
        deadline = Deadline(live, client, time_left)
        try:
            try:
                with deadline:
                    outcome = run_here(self.flow, parameters, live)
            except (Pause, Abort):  # it has left, or was cancelled: the log says so
                pass
            except Exception:
                # the run could not even begin, or was fenced: an answer if the log has an end for it
                state = client.read_flow_run(live.run_id).state
                if state is None or not state.is_final():
                    raise
            finally:
                if live.token is not None:  # no engine took it, as when no thread can be started
                    client.let_go(live)
            return self._report_or_continue(live.run_id, hops, outcome, left=deadline.passed)
        finally:
            deadline.pass_on()

    def _report_or_continue(
        self, run_id: str, hops: int, ended: State[Any] | None = None, *, left: bool = False
    ) -> Answer:
        """How the run stands, and how to go on with one that waits for nothing but time. `left` says that it was told
        to leave."""
        answer = self._report(run_id, ended)
        state = current_client().fold(run_id).flow_run.state
        if ran_out_of_time(state) or (left and state is not None and state.is_scheduled()):
            self._continue(answer, hops)
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
        answer: Answer = {"status": _status(state), "flow_run_id": run_id, "state": _text(str(state))}
        if state is not None and state.is_completed():
            answer.update(_NO_ITEMS if self.flow.isgenerator else _result(ended or run.flow_run.state))
        elif state is not None and state.is_final():
            answer["error"] = state.message and _text(state.message)
        client.store.close(run_id)
        return answer


_NO_ITEMS = {"result": None, "reason": "the items of a generator flow are not kept; return a list to have them here"}


def _digest(given: dict[str, Any]) -> str | None:
    """What a start was given, to be recognised; None when that is no JSON."""
    try:
        text = json.dumps(given, sort_keys=True)
    except (TypeError, ValueError, RecursionError):  # what a `parameters` function may give
        return None
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _has_other_parameters(run: Run, flow: Flow[Any, Any], parameters: dict[str, Any], digest: str | None) -> bool:
    """Whether the recorded run was certainly given something else. Nothing is rebuilt: what is kept in no form that can
    be compared is taken for the same."""
    recorded = run.header.get("given")
    if digest is not None and digest == recorded:
        return False
    try:
        kept = run.parameters_document()
    except (MicroflowException, ValueError):  # its file is gone, or damaged
        kept = None
    if kept is not None:
        try:
            given = to_json({name: value for name, value in parameters.items() if name not in flow.bound_names})
        except (MicroflowException, ValueError):  # what has no JSON form is not what was kept as JSON
            return True
        return json.dumps(kept, sort_keys=True) != json.dumps(given, sort_keys=True)
    return digest is not None and recorded is not None


def _input(envelope: dict[str, Any]) -> dict[str, Any] | None:
    given = envelope.get("input")
    if given is not None and not isinstance(given, dict):
        raise InvalidEvent(f"event['microflow']['input'] must be an object, got {given!r}")
    return given


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


def _text(text: str) -> str:
    """Text that UTF-8 can carry, as an answer has to."""
    return text.encode("utf-8", "backslashreplace").decode()


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
