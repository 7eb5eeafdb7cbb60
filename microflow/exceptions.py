# SPDX-License-Identifier: Apache-2.0
"""Every error and signal of microflow, and who raises it.

Three families, told apart by what a caller can do about them:

* :class:`MicroflowException`: an ordinary error. ``except Exception`` catches it.
* :class:`MicroflowSignal` and :class:`ExternalSignal`: control flow. They derive from
  ``BaseException`` so that user code which catches ``Exception`` cannot swallow a pause.
* :class:`LogError` and :class:`StorageError` (both MicroflowExceptions): what the state log raises.
  A command line maps each to an exit status of its own (``microflow.cli``).

The names without a star in the reference's list are the reference's own; each module of the public
surface ends with the reference's spelling as plain aliases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .states import State


class MicroflowException(Exception):
    """The base of every error that microflow raises on purpose."""


def describe(error: BaseException) -> str:
    """An exception in one line, ``TypeName: text``. Never raises, whatever the exception's class does."""
    name = type(error).__name__
    try:
        text = str(error)
    except Exception:  # a broken __str__ of the user's must not cost the run its record
        return f"{name} (whose text cannot be shown)"
    return f"{name}: {text}" if text else name


# ---------------------------------------------------------------------------------- outcomes of runs


class FailedRun(MicroflowException):
    """A FAILED state carries no exception of its own; raised by ``State.result()``."""


class CrashedRun(MicroflowException):
    """A CRASHED state carries no exception of its own; raised by ``State.result()``."""


class CancelledRun(MicroflowException):
    """The run was CANCELLED; raised by ``State.result()``."""


class UnfinishedRun(MicroflowException):
    """``State.result()`` was asked of a state that is not final."""


class PausedRun(UnfinishedRun):
    """``State.result()`` was asked of a PAUSED state, which is kept in ``state``."""

    def __init__(self, *args: object, state: State[Any] | None = None) -> None:
        super().__init__(*args)
        self.state = state


class MissingResult(MicroflowException):
    """A COMPLETED state has no value to give: it was not kept, or its file is gone."""


class DamagedResult(MissingResult):
    """A persisted result is there, but is not what was written."""


class UpstreamTaskError(MicroflowException):
    """A run that this one depends on did not reach COMPLETED; raised while inputs are resolved."""


class InterruptedRun(MicroflowException):
    """A started call was not logged as ended and may not run twice (``at_most_once=True``)."""


# ------------------------------------------------------------------------------- flows, tasks, calls


class ValidationError(MicroflowException, ValueError):
    """A value does not fit an annotation, or an input its class. ``problems`` has each place, from the outside in,
    with the reason."""

    def __init__(self, what: str, problems: Sequence[tuple[tuple[str | int, ...], str]] = ()) -> None:
        lines = [f" - {'.'.join(map(str, place)) or 'value'}: {reason}" for place, reason in problems]
        super().__init__("\n".join([f"{what}:", *lines]) if lines else what)
        self.problems = list(problems)

    def errors(self) -> list[dict[str, Any]]:
        """The problems as models of others list theirs: ``loc`` and ``msg`` of each."""
        return [{"loc": place, "msg": reason} for place, reason in self.problems]


class ParameterTypeError(MicroflowException):
    """Parameters do not fit the annotations of a flow; the text names each and what is wrong with it."""

    @classmethod
    def from_problems(cls, problems: Sequence[tuple[tuple[str | int, ...], str]]) -> ParameterTypeError:
        """The error that lists all problems, a line for each."""
        return cls(str(ValidationError("Flow run received invalid parameters", problems)))


class ParameterBindError(MicroflowException, TypeError):
    """Arguments do not fit a signature; raised at the call, before any run exists."""

    @classmethod
    def from_bind_failure(
        cls, name: str, problem: Exception, args: Sequence[object], kwargs: dict[str, object], signature: object
    ) -> ParameterBindError:
        """The error for a failed binding: names the function, its signature and what was given."""
        given = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())])
        if len(given) > 500:
            given = given[:500] + " …"
        return cls(f"cannot call {name}{signature}: {problem} (given: {given or 'nothing'})")


class SignatureMismatchError(MicroflowException, TypeError):
    """Stored or given parameter names that the function does not have."""

    @classmethod
    def from_names(cls, name: str, expected: Sequence[str], given: Sequence[str]) -> SignatureMismatchError:
        """The error that lists what the function `name` takes beside what it was given."""
        return cls(f"{name}() takes the parameters {list(expected)}, but was given {list(given)}")


class ReservedArgumentError(MicroflowException, TypeError):
    """A function has a parameter whose name microflow needs for itself."""


class InvalidNameError(MicroflowException, ValueError):
    """A name holds a character that names may not hold."""


class MappingLengthMismatch(MicroflowException):
    """``map`` was given iterables of different lengths."""


class MappingMissingIterable(MicroflowException):
    """``map`` was given nothing to map over."""


class MissingFlowError(MicroflowException):
    """An entrypoint names no flow."""


class UnspecifiedFlowError(MicroflowException):
    """An entrypoint names several flows and does not say which."""


class ScriptError(MicroflowException):
    """A script raised while it was imported; the user's exception is kept in ``user_exc``."""

    def __init__(self, user_exc: BaseException, path: str) -> None:
        super().__init__(f"{path} raised {type(user_exc).__name__}: {user_exc}")
        self.user_exc = user_exc
        self.path = path


class MissingContextError(MicroflowException, RuntimeError):
    """Something that needs a running flow or task was used outside of one."""


class HashError(MicroflowException):
    """A value shows nothing by which it could be told from others; no key can be computed from it."""


class ConfigurationError(MicroflowException):
    """Settings or options that do not work together."""


class SerializationError(MicroflowException):
    """A value cannot be written, or stored bytes cannot be read back."""


class NotTransferable(SerializationError, TypeError):
    """A task or an argument cannot be sent to another process; raised by ``submit`` where it is known then."""


# --------------------------------------------------------------------------------- runs in the store


class ObjectNotFound(MicroflowException):
    """No run, task run or deployment has this id."""


class ObjectAlreadyExists(MicroflowException):
    """Something has this key already, and is not replaced."""


class AmbiguousRunId(MicroflowException):
    """A shortened run id fits several runs, or a name several deployments."""


class NotPausedError(MicroflowException):
    """``resume_flow_run`` was asked for a run that is neither paused nor left behind by a dead process."""


class RunningElsewhere(MicroflowException):
    """Another live process owns the run."""


class FlowPauseTimeout(MicroflowException):
    """A pause was not resumed in time."""


class FlowRunTimeoutError(TimeoutError):
    """A flow ran longer than its ``timeout_seconds``."""


class FlowRunWaitTimeout(MicroflowException, TimeoutError):
    """``wait_for_flow_run`` gave up before the run finished."""


FlowWaitTimeout = FlowRunWaitTimeout  # the name on the reference's page


# ---------------------------------------------------------------------------------------- the state log


class LogError(MicroflowException):
    """The base of what the state log refuses."""


class Conflict(LogError):
    """Another process appended first: read what it wrote, decide again."""


class Fenced(LogError):
    """This process lost its claim on the run; nothing that it appends is accepted any more."""


class DamagedLog(LogError):
    """A log has a damaged line before its end. What stands before it stays readable; nothing is appended."""

    def __init__(self, path: str, line: int, offset: int, reason: str) -> None:
        super().__init__(
            f"{path} is damaged at line {line} (byte {offset}): {reason}. "
            f"The records before it can be read; restore the file from a copy to go on."
        )
        self.path = path
        self.line = line
        self.offset = offset
        self.reason = reason


class LogFormatTooNew(LogError):
    """A log was written by a newer microflow; this one must not read or must not append to it."""


class RecordTooLarge(LogError):
    """The records of one transition do not fit into one line of 1 MiB."""


class StorageError(MicroflowException):
    """The operating system refused to store something. ``__cause__`` is the OSError."""


class NoSpace(StorageError):
    """A write was refused or fell short and was undone: nothing was recorded, the log is intact."""

    #: whether a run could not be recorded for want of room: it is to be resumed then, and has not failed
    stopped_a_run = False


class IndeterminateAppend(StorageError):
    """A write or sync failed and could not be undone. The log must be opened anew before it is used again."""


# ------------------------------------------------------------------------------------------- control flow


class MicroflowSignal(BaseException):
    """The base of the signals that steer a run; never caught by ``except Exception``."""


class Abort(MicroflowSignal):
    """The transition is refused for good; the run stays as it is."""


class Pause(MicroflowSignal):
    """The run leaves its process because it is suspended; the state is kept in ``state``."""

    def __init__(self, *args: object, state: State[Any] | None = None) -> None:
        super().__init__(*args)
        self.state = state


class ExternalSignal(BaseException):
    """The base of what arrives from outside the process."""


class WorkerLost(ExternalSignal):
    """The process that an attempt ran in is gone; the run is CRASHED, others are not affected."""


class AttemptCancelled(ExternalSignal):
    """The process that an attempt ran in was killed because the run was cancelled."""


class TerminationSignal(ExternalSignal):
    """SIGTERM arrived; the number is kept in ``signal``."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"received signal {signal}")
        self.signal = signal


# the reference's spelling
PrefectException = MicroflowException
PrefectSignal = MicroflowSignal
