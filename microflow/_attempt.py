# SPDX-License-Identifier: Apache-2.0
"""One attempt of a task run in a worker: from the call envelope to the outcome envelope.

:func:`run_envelope` is the one function that executors are given. It is of this module's level, takes bytes, gives
bytes and never raises: a task that calls ``sys.exit`` is an outcome like any other. Nothing is written to any log here:
the states of the run are its owner's matter, and the calls that the task makes come back as records.

Which thread runs what: the task in the thread that called, a coroutine task on a loop of its own there, what the
task submits in threads that have ended when the attempt has.

Known holes: calls that a task makes outside of any flow run are remembered in the worker only. What they stage is
committed when the attempt has succeeded: a transaction around the task, in its owner, does not roll it back.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, nullcontext
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from ._captured_logs import captured, forget_inherited_handlers
from ._carried import load_definition, news, teach
from ._envelope import (
    is_of_ancestor,
    is_origin,
    join,
    names_of_main,
    pack_error,
    split,
)
from ._prints import effective_log_prints
from ._tagged_json import NotEncodable
from ._waits import BlockingWaits, finish, run_coroutine
from .context import ContextModel, FlowRunContext, hydrated_context
from .entrypoints import resolver_through
from .exceptions import ConfigurationError, MissingFlowError, SerializationError
from .serializers import pack, unpack
from .states import State, return_value_to_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from contextvars import Context

    from ._assets import AssetContext
    from .client.live import LiveRun
    from .transactions import Transaction

    Emit = Callable[[dict[str, Any]], None]


def run_envelope(payload: bytes, emit: Emit | None = None) -> bytes:
    """Run the attempt that a call envelope describes; gives the outcome envelope and raises nothing at all.

    What is logged meanwhile goes to `emit` as it is logged, or comes back with the outcome."""
    attempt = None
    try:
        header, blobs = split(payload)
        attempt = _Attempt(header, blobs, emit)
        return _context_of_worker().run(attempt.run)
    except BaseException as error:  # a broken envelope, or an interrupt between the task's end and here
        form, blob = pack_error(error)
        outcome = {"attempt": attempt and attempt.header.get("attempt"), "kind": _kind(error), "form": form}
        return join({**outcome, "logs": [], "news": [], "files": [], "calls": {}, "main": []}, [blob])


def _context_of_worker() -> Context:
    """What the worker's program has set, and no run of ours: what a fork has of them is where its parent stood."""
    context = copy_context()
    for variable in list(context):
        if variable.name.startswith("microflow_"):
            context.run(variable.set, None)
    return context


def _kind(error: BaseException) -> str:
    return "error" if isinstance(error, Exception) else "interrupt"


class _Attempt:
    """An attempt and what it leaves behind."""

    def __init__(self, header: dict[str, Any], blobs: list[bytes], emit: Emit | None) -> None:
        self.header = header
        self.blobs = iter(blobs)
        self.resolve = resolver_through(header["main"])
        self.logs: list[dict[str, Any]] = []
        self.emit = emit if emit is not None else self.logs.append
        self.live: LiveRun | None = None
        self.position = 0
        self.assets: AssetContext | None = None

    def run(self) -> bytes:
        """Run it; the outcome envelope."""
        kind = "value"
        with ExitStack() as stack:
            if not is_origin(self.header["origin"]):  # a thread of the owner's process logs there anyway
                if is_of_ancestor(self.header["origin"]):
                    forget_inherited_handlers()  # the owner has them, and each record is logged there
                stack.enter_context(captured(self.emit, self.header["levels"]))
            try:
                form, blob = self._packed(self._call())
            except BaseException as error:  # whatever a task raises, sys.exit included, is its outcome
                kind, (form, blob) = _kind(error), pack_error(error)
        live = self.live
        reported, files = ([], {}) if live is None else news(live, self.position)
        outcome = {
            "attempt": self.header["attempt"],
            "kind": kind,
            "form": form,
            "logs": self.logs,
            "news": reported,
            "files": list(files),
            "calls": {} if live is None else {call.hex(): number for call, number in live.calls_made().items()},
            "main": names_of_main(self.header["main"]),
            "assets": {} if self.assets is None else self.assets.plain_metadata(),
        }
        return join(outcome, [blob, *files.values()])

    def _call(self) -> Any:
        header = self.header
        task = self._task()
        # taken in order: the blobs stand as the header lists them
        parameters = {name: self._value(form, f"argument {name!r}") for name, form in header["parameters"]}
        history = [next(self.blobs) for _ in header["history"]["files"]]
        with hydrated_context(header["context"], flow=self._flow(), task=task, parameters=parameters) as live:
            self.live = live
            if live is not None:
                teach(live, header["history"]["records"], history, header["history"]["dropped"])
                live.calls_made().update((bytes.fromhex(call), number) for call, number in header["calls"].items())
                self.position = live.run.position
            if any(header["context"][part].get("log_prints") for part in ("flow_run_context", "task_run_context")):
                effective_log_prints(True)  # the contexts say of which runs; this is what looks at them
            args, kwargs = task.parameters.call_arguments(parameters)
            with self._asset_context(), self._transaction() as transaction:
                value = _listed(finish(BlockingWaits().call(task.fn, *args, **kwargs)).unwrap())
                if transaction is not None and transaction.children and _is_failure(value):
                    transaction.rollback()
            return value

    def _asset_context(self) -> AbstractContextManager[Any]:
        """What takes the metadata that the task adds to assets. The events are its owner's to note."""
        made = self.header.get("assets")
        if made is None:
            return nullcontext()
        from ._assets import Asset, AssetContext  # only for tasks that have to do with assets

        self.assets = AssetContext(downstream_assets=[Asset(key) for key in made])
        return self.assets

    def _transaction(self) -> AbstractContextManager[Transaction | None]:
        """What the calls of this attempt are committed or rolled back with, before its owner does so with its own."""
        if not self.header["transactions"]:
            return nullcontext()
        from .transactions import transaction  # only for programs that have it loaded

        made = transaction(write_on_commit=False)
        made.is_attempt = True
        return made

    def _task(self) -> Any:
        described, form = self.header["task"]
        if form is not None:
            return load_definition(described, self._value(form, "the task's function"))
        place = described["entrypoint"].rpartition(":")[0]
        try:
            with Importing(place):
                return load_definition(described)
        except MissingFlowError as problem:
            raise MissingFlowError(
                f"task {described['name']!r} is not found in a worker: {problem} A worker runs nothing of what stands "
                f"below `if __name__ == \"__main__\":`: define the task above it, at the top level."
            ) from problem

    def _flow(self) -> Any:
        """The flow itself where it stands in the task's module, which is loaded by now; else None."""
        described = self.header["context"]["flow_run_context"].get("flow")
        if not described or not described["entrypoint"]:
            return None
        place = described["entrypoint"].rpartition(":")[0]
        if place != (self.header["task"][0]["entrypoint"] or "").rpartition(":")[0]:
            return None
        try:
            with Importing(place):
                return load_definition(described)
        except MissingFlowError:  # defined below `if __name__ == "__main__":`; a task hardly needs more than its name
            return None

    def _value(self, form: str, what: str) -> Any:
        try:
            return unpack(form, next(self.blobs), allow_pickle=True, resolve=self.resolve)
        except SerializationError as problem:
            name = self.header["task"][0]["name"]
            raise SerializationError(f"{what} of task {name!r} cannot be rebuilt in the worker: {problem}") from problem

    def _packed(self, value: Any) -> tuple[str, bytes]:
        try:
            return pack(value)
        except NotEncodable as problem:
            name = self.header["task"][0]["name"]
            raise SerializationError(
                f"the result of task {name!r} cannot come back from process {os.getpid()}: {problem.path}: "
                f"{problem.reason}. Return what can be pickled, or write it to a file and return the path."
            ) from None


def _is_failure(value: Any) -> bool:
    """Whether a task that returned this did not complete."""
    return not (value if isinstance(value, State) else return_value_to_state(value)).is_completed()


class Importing(FlowRunContext):
    """Current while a worker imports the module of a task: no flow or task may run then.

    A script without ``if __name__ == "__main__":`` around what starts its flow would start it again in every
    worker. Whatever a flow or task asks of its context says so."""

    __slots__ = ("place",)

    def __init__(self, place: str) -> None:
        ContextModel.__init__(self)
        self.place = place

    def _colour(self) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        raise ConfigurationError(
            f"{self.place} starts a flow or task while a worker process imports it to find the task that it is to "
            f'run. Put what starts it below `if __name__ == "__main__":`.'
        )


def _listed(value: Any) -> Any:
    """A generator's items, as runs in threads keep them too; anything else as it is."""
    if hasattr(value, "gi_frame"):
        return list(value)
    if hasattr(value, "ag_frame"):

        async def items() -> list[Any]:
            return [item async for item in value]

        return run_coroutine(items())
    return value


def flush() -> None:
    """Write out what the task printed: a worker may be killed at any moment from now on."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # closed, or none at all
            continue
