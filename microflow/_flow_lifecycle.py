# SPDX-License-Identifier: Apache-2.0
"""The life of a flow run.

Goal: as in ``task_engine``, one text for blocking and asyncio flows. A flow run owns its log while it runs:
its first line creates and claims it, its last one carries the final state together with the owner's release,
so that no reader finds an ended run with an owner, or a run without one that has not ended.

The order at the end of an attempt, and why:

1. the body returns or raises; futures in what it returned are waited for;
2. the task runner shuts down: what has not started is CANCELLED, what runs is joined;
3. the final state is appended. It is the last word of the log, so task runs never end after their flow;
4. hooks run, then the parent's tracking run gets its final state, then the caller goes on.

An interrupt (Ctrl-C, SystemExit, a cancelled asyncio task) turns 2 and 3 around: CRASHED is recorded at once,
because whoever interrupts may kill next.

Re-execution: a run that was taken over goes on in RUNNING without a new record; the body runs from the top and
``calls`` hands back what ended. How a subflow stands in its parent is said in ``_tracking``.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._arguments import find, read_wait_for
from ._boundary import check_boundary, is_held, released, stop_signal, until_due
from ._definitions import hook_name
from ._flow_outcome import FlowOutcome
from ._loggers import DEBUG, ERROR, FLOW_RUN_LISTENERS, INFO
from ._prints import effective_log_prints
from ._termination import meant_by
from ._waits import Waits, now_us, settle, to_us
from .client.live import Answer, LiveRun
from .client.objects import FlowRunResult
from .client.orchestration import SyncClient, current_client
from .client.requests import expire
from .context import FlowRunContext, TaskRunContext, current_tags
from .exceptions import (
    Abort,
    FlowPauseTimeout,
    FlowRunTimeoutError,
    LogError,
    MicroflowException,
    ParameterTypeError,
    Pause,
    RecordTooLarge,
    StorageError,
    UpstreamTaskError,
)
from .futures import RunFuture, resolve_argument, resolve_futures_to_states
from .settings import current_settings
from .states import (
    Cancelled,
    Cancelling,
    Failed,
    Pending,
    Running,
    State,
    StateType,
    Value,
    exception_to_crashed_state,
    exception_to_failed_state,
    return_value_to_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._timeouts import Limit
    from ._tracking import Tracking
    from .client.objects import FlowRun
    from .flows import Flow
    from .logging import RunLogger
    from .task_runners import TaskRunner

R = TypeVar("R")

_BEFORE_RUNNING = frozenset({StateType.SCHEDULED, StateType.PENDING})
_WHILE_RUNNING = frozenset({StateType.RUNNING})


class BaseFlowRunEngine(FlowOutcome, Generic[R]):
    """Every rule of a flow run's life."""

    waits: Waits

    # the public steps: plain methods of the blocking engine, coroutines of the other; settle() takes both
    begin_run: Callable[[], Any]
    call_flow_fn: Callable[[], Any]
    call_hooks: Callable[..., Any]
    handle_success: Callable[[Any], Any]
    handle_exception: Callable[[Exception], Any]
    handle_timeout: Callable[[TimeoutError], Any]

    def __init__(
        self,
        flow: Flow[Any, R],
        parameters: dict[str, Any] | None = None,
        flow_run: FlowRun | None = None,
        wait_for: Any = None,
        live: LiveRun | None = None,
        client: SyncClient | None = None,
    ) -> None:
        self.flow = flow
        self.parameters = parameters
        self.flow_run = flow_run
        self.wait_for = read_wait_for(wait_for)
        self.live = live
        self.client = client or current_client()
        self._tracking: Tracking | None = None
        super().__init__()
        self._crashed = False

    # ---------------------------------------------------------------------------------- what it knows

    @property
    def state(self) -> State[Any]:
        """The present state of the run."""
        if self.flow_run is None or self.flow_run.state is None:
            raise ValueError("the engine has no flow run yet, so there is no state")
        return self.flow_run.state

    @property
    def logger(self) -> RunLogger:
        """The run's logger."""
        from .logging import flow_run_logger  # here, because most runs say nothing that anybody hears

        assert self.flow_run is not None
        return flow_run_logger(self.flow_run)

    def is_running(self) -> bool:
        """Whether the run is in RUNNING."""
        return self.flow_run is not None and self.flow_run.state_type is StateType.RUNNING

    # ------------------------------------------------------------------------------------ transitions

    def set_state(self, state: State[Any], force: bool = False) -> Answer:
        """Propose a state of the run (invariant I2: nothing else appends its states). A final one carries
        the release of the run, see ``LiveRun.propose``."""
        assert self.live is not None
        only_from = None if force else _BEFORE_RUNNING if state.is_running() else _WHILE_RUNNING
        return self.live.propose(state, force=force, release=not force, only_from=only_from)

    async def _begin_run(self) -> None:
        """Enter RUNNING. A run that was taken over while RUNNING is in it already; a subflow that a killed process left
        paused pauses again, since nobody but its parent can go on with it."""
        if self._tracking is not None and self.live is not None and is_held(self.state):
            expire(self.live, self.state, again=True)
        assert self.live is not None
        while not self.is_running():
            answer = self.set_state(Running())
            if answer.status == Answer.WAIT:
                await self.waits.sleep(answer.seconds, self.live.leaving)
            elif answer.status == Answer.ABORT or not self.is_running():
                raise self._refused(answer)
        await settle(self.call_hooks())

    def _refused(self, answer: Answer) -> BaseException:
        assert self.live is not None
        if self.state.is_paused():
            return Pause(f"flow run {self.live.flow_run.name!r} is paused; resume it first", state=self.state)
        return stop_signal(self.live) or Abort(f"flow run {self.state} cannot run: {answer.reason}")

    async def _conclude(self, state: State[Any]) -> None:
        """Propose the state in which the attempt ends. A pause that somebody else asked for is waited out; a run that
        was asked to stop ends by that; what others have ended stays as they have."""
        assert self.live is not None
        while True:
            answer = self.set_state(state)
            present = self.state
            if answer.accepted or present.name == "AwaitingRetry":
                return
            if present.is_final():
                self._raised = self._value = None
                return
            if not is_held(present):
                raise self._refused(answer)
            await released(self.live, self.waits)

    async def _await_retry(self) -> None:
        due = to_us(self.state.state_details.scheduled_time) or 0
        seconds = (due - now_us()) / 1e6
        if seconds < 1:
            await self.waits.sleep(seconds)
        else:  # long enough to be asked something meanwhile
            assert self.live is not None
            live, waiting = self.live, self.state
            # in a process that is told to leave, the wait is left to others
            await until_due(live, self.waits, due, lambda: live.flow_run.state is not waiting, live.leaving)
        self._log(INFO, "Received non-final state %r, will attempt to run again", self.state.name)

    async def _handle_success(self, result: Any) -> None:
        terminal = return_value_to_state(result)
        # the state's own copy, in which a generator is a list
        self._value = terminal.data if isinstance(terminal.data, Value) and terminal is not result else Value(result)
        if not terminal.is_final() and not (terminal.is_paused() or terminal.is_cancelling()):
            error = ValueError(f"the flow returned {terminal}, which is no state that a run can end in")
            await settle(self.handle_exception(error))
            return
        await self._conclude(terminal)
        context = FlowRunContext.get()
        if context is not None and context.parent is not None and self.flow_run is not None:
            context.parent.links.add(result, self.flow_run.id, FlowRunResult)  # for calls that its caller makes with it

    async def _handle_exception(self, error: Exception) -> None:
        self._raised = error
        self._log(ERROR, "Encountered exception during execution: %r", error, error=error)
        state = exception_to_failed_state(error, message="Flow run encountered an exception:")
        if isinstance(error, FlowPauseTimeout):
            state.state_details.retriable = False  # another attempt would only pause again
        await self._conclude(state)

    async def _handle_timeout(self, error: TimeoutError) -> None:
        """Record FAILED named TimedOut; a retry that is left applies. An own TimeoutError of the user's is named so
        too."""
        self._raised = error
        message = f"Flow run failed due to timeout: {error!r}"
        if isinstance(error, FlowRunTimeoutError):
            message = f"Flow run exceeded timeout of {self.flow.timeout_seconds} second(s)"
        self._log(ERROR, message)
        await self._conclude(Failed(name="TimedOut", message=message, data=error))

    def handle_crash(self, error: BaseException) -> None:
        """Record that the run was interrupted; the interrupt goes on to the caller. GeneratorExit, which is what a
        coroutine is given that nobody awaits to its end, is no crash: the run is CANCELLED."""
        if self.flow_run is None or self.live is None or self.live.token is None or self.state.is_final():
            return
        if isinstance(error, GeneratorExit):
            state: State[Any] = Cancelled(message="The flow was closed before it ended.")
        else:
            state = exception_to_crashed_state(meant_by(error))
            self._log(ERROR, "Crash detected! %s", state.message)
        self._raised = error
        try:
            self.set_state(state, force=True)
        except (LogError, StorageError) as refused:  # the interrupt goes on; readers see a run without an owner
            self._log(ERROR, "The crash could not be recorded", error=refused)

    async def _call_hooks(self, state: State[Any] | None = None) -> None:
        """Run the hooks of the present state, in order. What they raise is logged (invariant I7)."""
        state = state or self.state
        hooks = self.flow.hooks_for(state.type)
        context = FlowRunContext.get()
        if hooks and self.live is not None and (context is None or context.live is not self.live):
            with self._context(self.flow.task_runner):
                await self._call_each(hooks, state)
        else:
            await self._call_each(hooks, state)

    async def _call_each(self, hooks: list[Callable[..., Any]], state: State[Any]) -> None:
        for hook in hooks:
            name = hook_name(hook)
            self._log(INFO, "Running hook %r in response to entering state %r", name, state.name)
            outcome = await self.waits.call(hook, self.flow, self.flow_run, state)
            if outcome.error is not None:
                self._log(ERROR, "An error was encountered while running hook %r", name, error=outcome.error)
            else:
                self._log(INFO, "Hook %r finished running successfully", name)

    # -------------------------------------------------------------------------------------- open and close

    def _open(self) -> State[Any] | None:
        """Create, adopt or take over the run. The state to hand back when it has ended already."""
        if self.live is None and self.flow_run is not None:
            run_id = str(self.flow_run.id)
            if self.parameters is None:  # before the claim: a run that cannot be run here is not taken from anybody
                self.parameters = self.flow.rebind(self.client.fold(run_id).parameters())
            self.live = self.client.claim(run_id)
        if self.live is None:
            context = FlowRunContext.get()
            if context is not None:
                return self._open_subflow(context)
            run = self.client.new_flow_run(self.flow, tags=current_tags())
            self.live = self.client.start(run, self.flow, self.parameters or {}, Pending(), own=True)
        return None

    def _open_subflow(self, context: FlowRunContext) -> State[Any] | None:
        from ._tracking import Tracking  # only for subflows

        tracking = self._tracking = Tracking.of(self.flow, self.parameters or {}, context)
        if tracking.call.ended is not None:
            if not self.flow.isgenerator:
                return tracking.call.ended
            tracking.replace_child()  # what it yielded is in no log
        self.live, ended = tracking.open_child(self.flow, self.parameters or {}, self.client)
        return ended

    @contextmanager
    def initialize_run(self) -> Iterator[State[Any] | None]:
        """Own the run for the block; yields the state to hand back, if any. Records an interrupt as a crash and
        lets go of the run however the block ends."""
        ended = self._open()
        if ended is not None:
            yield ended
            return
        live = self.live
        assert live is not None
        self.flow_run = live.flow_run
        try:
            yield None
        except (LogError, StorageError) as refused:  # the log does not take our word any more: say nothing in it
            self.client.abandon(live)
            raise refused
        except (Exception, Pause, GeneratorExit):
            raise
        except Abort as signal:
            self._log(ERROR, "Flow run was aborted: %s", signal)
            raise
        except BaseException as interrupt:  # recorded, then on its way: KeyboardInterrupt, SystemExit, …
            self.handle_crash(interrupt)
            raise
        finally:
            self.client.let_go(live)
            if self._tracking is not None and self.state.is_final():
                self._tracking.end(self.state)
            self._log_finished()

    # ------------------------------------------------------------------------------------- the whole life

    async def _prepare(self) -> bool:
        """Resolve and check the parameters, and name the run. False when it is not to run: an upstream run did not
        complete, or the parameters do not fit, for which no retry is spent."""
        assert self.parameters is not None and self.live is not None
        try:
            for name, value in self.parameters.items():
                self.parameters[name] = await resolve_argument(value, self.waits)
            if self.wait_for is not None:
                await resolve_argument(self.wait_for, self.waits)
            if self.flow.should_validate_parameters:
                self.parameters = self.flow.validate_parameters(self.parameters)
            with self._context(self.flow.task_runner):  # the callable for the name may ask for the parameters
                own_name = self.flow.render_run_name(self.parameters)
        except UpstreamTaskError as error:
            self.live.propose(Pending(name="NotReady", message=str(error)), force=True)
            return False
        except ParameterTypeError as error:
            await self._not_started(error, "Validation of flow parameters failed with error:")
            return False
        except Exception as error:  # an argument that is no good, or the user's template or callable for the name
            await self._not_started(error, "Flow run could not start:")
            raise
        if own_name is not None and own_name != self.live.flow_run.name:
            self.live.rename(own_name)
        return True

    async def _not_started(self, error: Exception, message: str) -> None:
        """Record FAILED of a run that never runs, and call its hooks."""
        self._raised = error
        self.set_state(exception_to_failed_state(error, message=message), force=True)
        await settle(self.call_hooks())

    async def _run(self) -> None:
        """One run from its creation to its last hook."""
        await self._wait_while_caller_is_paused()
        with self.initialize_run() as ended:
            if ended is not None:
                self._hand_back(ended)
                return
            assert self.live is not None
            if self.live.must_sync:
                await self.waits.block(self.live.sync)
            if not await self._prepare():
                return
            kind = "subflow run" if self._tracking is not None else "flow run"
            self._log(INFO, "Beginning %s %r for flow %r", kind, self.live.flow_run.name, self.flow.name)
            try:
                await settle(self.begin_run())
                while self.is_running():
                    await self._attempt()
                    if self.state.name == "AwaitingRetry":
                        await self._await_retry()
                        await settle(self.begin_run())
            except BaseException as signal:  # what is no request of others is raised again
                request = self._request_behind(signal)
                if request not in ("cancel", "cancel caller", "ended"):
                    raise
                await self._stop()
                if request == "cancel caller" or not isinstance(signal, (Pause, Abort)):
                    raise

    async def _wait_while_caller_is_paused(self) -> None:
        """A subflow is something new, too, that a paused run does not start."""
        context = FlowRunContext.get()
        if context is not None and self.live is None and is_held(context.flow_run.state):
            await released(context.live, self.waits)

    def _request_behind(self, signal: BaseException) -> str | None:
        """Which request of others ended the body: "cancel", "cancel caller" of one that called it, "suspend", "leave"
        a pause to others, or "ended" when they gave the run a final state. None when it was interrupted."""
        live, context = self.live, FlowRunContext.get()
        if isinstance(signal, Exception) or live is None or live.token is None or self._crashed:
            return None
        try:
            runs = [live]
            if context is not None:
                runs += [each.live for each in (context, *context.callers()) if each.live is not live]
            for run in runs:
                run.refresh()
        except (LogError, StorageError):  # the signal goes on; whoever reads the log sees a run without an owner
            return None
        if self.state.is_final():
            return "ended" if isinstance(signal, Abort) else None
        if isinstance(signal, Pause) and is_held(self.state) and live.leaving is not None and live.leaving.told:
            return "leave"
        states = [run.flow_run.state for run in runs]
        if self.state.is_cancelling():
            return "cancel"
        if any(state is not None and state.is_cancelling() for state in states):
            return "cancel caller"
        return "suspend" if any(state is not None and state.is_left() for state in states) else None

    async def _stop(self) -> None:
        """Cancel the run: on_cancellation hooks while it is CANCELLING, then CANCELLED. Dying in between, readers see
        it as CANCELLED all the same."""
        self._raised = self._value = None
        if self.state.is_final():
            return
        if not self.state.is_cancelling():  # a caller is to be cancelled
            self.set_state(Cancelling(), force=True)
        await settle(self.call_hooks())
        self.set_state(Cancelled(message="The flow run was cancelled."), force=True)

    def _context(self, runner: TaskRunner[Any]) -> FlowRunContext:
        assert self.flow_run is not None and self.live is not None and self.parameters is not None
        context = FlowRunContext(self.flow, self.flow_run, self.live, self.client, runner, self.parameters)
        context.log_prints = effective_log_prints(self.flow.log_prints)
        self._set_persisting(context)
        return context

    def _set_persisting(self, context: FlowRunContext) -> None:
        """Whether and where the results of this flow's tasks are persisted, unless they say so themselves."""
        flow, settings = self.flow, current_settings()
        around = TaskRunContext.get() or FlowRunContext.get()
        inherited = None if around is None else around.persist_result
        if flow.persist_result is not None:
            context.persist_result = flow.persist_result
        else:
            context.persist_result = settings.persist_results_by_default if inherited is None else inherited
        context.tasks_persist = settings.default_task_persist_result
        if flow.result_storage is not None or flow.result_serializer is not None:
            from .results import get_result_store  # only for flows that say where

            context.result_store = get_result_store().update_for_flow(flow)
        elif around is not None:
            context.result_store = around.result_store

    async def _attempt(self) -> None:
        """Run the body once, from the runner's start to the final state and its hooks."""
        live = self.live
        assert live is not None
        live.begin_attempt()
        self._raised = self._value = None
        runner = self.flow.task_runner.duplicate()
        with self._context(runner) as context:
            runner.__enter__()
            try:
                error, result = await self._call_body(context)
            except BaseException as interrupt:
                crashed = self._crashed = self._request_behind(interrupt) is None
                try:
                    if crashed:
                        self.handle_crash(interrupt)
                finally:  # also when the log refuses the state: a runner that is left open leaves its threads behind
                    await self._leave(runner, interrupt if crashed else None)
                if crashed:
                    await settle(self.call_hooks())
                raise
            await self._leave(runner)
            refused = error is live.refused or getattr(error, "stopped_a_run", False)
            if error is not None and refused and not isinstance(error, RecordTooLarge):
                raise error  # the log takes nothing any more: to be resumed, not to be recorded as anybody's failure
            if isinstance(error, TimeoutError) and not isinstance(error, MicroflowException):
                await settle(self.handle_timeout(error))
            elif error is not None:
                await settle(self.handle_exception(error))
            else:
                await settle(self.handle_success(result))
            if live.must_sync:
                await self.waits.block(live.sync)
            if not self.is_running() and self.state.name != "AwaitingRetry":
                await settle(self.call_hooks())

    async def _call_body(self, context: FlowRunContext) -> tuple[Exception | None, Any]:
        """What the body raised, and what it returned with its futures replaced, within the time limit of an attempt."""
        seconds = self.flow.timeout_seconds
        context.limit = self._start_limit(seconds) if seconds else None
        error: Exception | None = None
        result = None
        try:
            result = await settle(self.call_flow_fn())
            if self.flow.isgenerator:
                result = await self._hand_over_from(result, context)
            result = await self._settled(result, context.limit)
        except Exception as failure:  # user code: the run's outcome, not ours to judge
            error = failure
        except BaseException as interrupt:
            limit = context.limit
            if limit is None or not limit.close() or not limit.owns(interrupt):
                raise
        finally:
            late = context.limit is not None and context.limit.close()
        if late:
            error = self._too_late(error)
        return error, result

    def _too_late(self, cause: Exception | None) -> FlowRunTimeoutError:
        error = FlowRunTimeoutError(
            f"flow {self.flow.name!r} timed out after {self.flow.timeout_seconds} second(s)"
        )
        error.__cause__ = cause
        return error

    def _start_limit(self, seconds: float) -> Limit:
        from ._timeouts import limit  # only for flows that have one

        return limit(seconds, isasync=self.flow.isasync)

    async def _hand_over_from(self, generator: Any, context: FlowRunContext) -> Any:
        """Hand over what the body yields, one by one; gives what it returns. A consumer that wants no more closes it,
        and the run has COMPLETED without a value. The time limit goes on while the consumer has an item, but does not
        interrupt the consumer."""
        from ._handing_over import Closed, hand_over  # only for flows that yield

        step = generator.asend if self.flow.isasync else generator.send
        throw = generator.athrow if self.flow.isasync else generator.throw
        call: tuple[Any, Any] = (step, None)
        while True:
            outcome = await self.waits.call(*call)
            if isinstance(outcome.error, (StopIteration, StopAsyncIteration)):
                return getattr(outcome.error, "value", None)
            item, limit = outcome.unwrap(), context.limit
            if limit is not None and limit.close():
                return None  # late: the limit's owner says so
            try:
                call = (step, await hand_over(item))
            except Closed:
                await self._close(generator)
                return None
            except BaseException as thrown:  # by the consumer, at the body
                call = (throw, thrown)
            if limit is not None:
                left = limit.due - time.monotonic()
                if left <= 0:
                    await self._close(generator)
                    raise self._too_late(None)
                context.limit = self._start_limit(left)
            check_boundary(context)

    async def _close(self, generator: Any) -> None:
        """Have the body's ``finally`` run; what it raises is its failure."""
        (await self.waits.call(generator.aclose if self.flow.isasync else generator.close)).unwrap()

    async def _leave(self, runner: TaskRunner[Any], interrupt: BaseException | None = None) -> None:
        assert self.live is not None
        self.live.close_gate()
        kind = None if interrupt is None else type(interrupt)
        if self.flow.isasync:
            for ending in runner.cancel_on_this_loop():
                await self.waits.wait(ending)
        if runner.is_idle():
            runner.__exit__(kind, interrupt, None)
        else:  # joins what runs, which may be what the loop itself has to serve
            await self.waits.block(runner.__exit__, kind, interrupt, None)

    async def _settled(self, result: Any, limit: Limit | None) -> Any:
        """What the body returned, with the final states of its futures in their place."""
        if limit is not None and not self.flow.isasync:  # where an alarm may interrupt the wait
            return (await self.waits.call(resolve_futures_to_states, result)).unwrap()
        for future in find(result, (RunFuture,)):
            await self.waits.wait(future)
        return resolve_futures_to_states(result)

    # ------------------------------------------------------------------------------------------- logging

    def _log(self, level: int, message: str, *args: object, error: object = None) -> None:
        if FLOW_RUN_LISTENERS.hear(level) and self.flow_run is not None:
            self.logger.log(level, message, *args, exc_info=error if isinstance(error, BaseException) else None)

    def _log_finished(self) -> None:
        state = self.state
        shown = repr(state) if FLOW_RUN_LISTENERS.hear(DEBUG) else str(state)
        fine = state.is_completed() or state.is_paused() or state.is_resuming()  # who resumes may be that quick
        self._log(INFO if fine else ERROR, "Finished in state %s", shown)
