# SPDX-License-Identifier: Apache-2.0
"""The command line: ``python -m microflow run, ls, show, resume, cancel, gc``.

With ``--json`` standard output carries exactly one JSON document; what a flow prints goes to standard error.
What goes wrong is one line on standard error that names the culprit and the cure, and an exit status:

====== ===================================== ====== ========================================
status meaning                               status meaning
====== ===================================== ====== ========================================
0      completed                             5      the log's format is too new
1      failed, crashed or cancelled          6      already running elsewhere
2      wrong use, or unknown                 7      the storage failed
3      paused or suspended                   8      fenced: another process took the run over
4      the log is damaged
====== ===================================== ====== ========================================
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ._progress import Progress, printable
from ._reports import print_run, print_table, report_of, row_of, seen_state
from ._strict_json import parse
from ._waits import now_us
from .client.orchestration import SyncClient, current_client
from .entrypoints import load_entrypoint
from .exceptions import (
    ConfigurationError,
    DamagedLog,
    Fenced,
    FlowPauseTimeout,
    LogFormatTooNew,
    MicroflowException,
    NotPausedError,
    ObjectNotFound,
    ParameterTypeError,
    Pause,
    RunningElsewhere,
    StorageError,
)
from .flow_engine import run_to_state
from .flow_runs import take_over
from .flows import Flow, load_flow_from_entrypoint
from .settings import current_settings, readable_home
from .states import Pending, State, StateType
from .stores import FileStore
from .worker import Worker, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import NoReturn

    from ._reports import Report
    from .client.fold import Run
    from .client.live import LiveRun

COMPLETED, FAILED, WRONG_USE, PAUSED, DAMAGED, TOO_NEW, ELSEWHERE, STORAGE, FENCED = range(9)

_STATUS_OF_ERROR: tuple[tuple[type[BaseException], int], ...] = (
    (DamagedLog, DAMAGED),
    (LogFormatTooNew, TOO_NEW),
    (FlowPauseTimeout, FAILED),
    (RunningElsewhere, ELSEWHERE),
    (Fenced, FENCED),
    (StorageError, STORAGE),
    (MicroflowException, WRONG_USE),
)

_PROGRAM = f"python -m {__package__}"

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class UsageError(MicroflowException):
    """The words of the command line do not make sense."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USE, f"microflow: {message}; see {self.prog} --help\n")


class _Formatter(logging.Formatter):
    """One line for each message, whatever names and values hold; a traceback keeps its own lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, exc_info: Any) -> str:
        return "\n".join(map(printable, super().formatException(exc_info).splitlines()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options = _parser().parse_args(arguments)
    _configure_logging(options.log_level)
    try:
        status: int = options.command(options, _client(options.command) if options.needs_home else None)
        return status
    except KeyboardInterrupt:
        print("microflow: interrupted", file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # the reader of our output has gone, as in `ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return COMPLETED
    except MicroflowException as error:
        print(f"microflow: {printable(str(error))}", file=sys.stderr)
        return _status_of_error(error)


def _configure_logging(level: str) -> None:
    """The one place where microflow configures logging: here it is the program."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s | %(levelname)-7s | %(name)s - %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _status_of_error(error: MicroflowException) -> int:
    return next(status for kind, status in _STATUS_OF_ERROR if isinstance(error, kind))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=_PROGRAM, description="Run flows; look at, resume and delete their runs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    common.add_argument(
        "--log-level", default="warning", choices=["debug", "info", "warning", "error"], help="what is logged to stderr"
    )

    def add(name: str, command: Any, words: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=words, description=words, parents=[common])
        sub.set_defaults(command=command, needs_home=True)
        return sub

    run = add("run", run_command, "run a flow")
    run.add_argument("target", metavar="TARGET", help="path.py:flow or module:flow")
    run.add_argument("--param", action="append", default=[], metavar="NAME=JSON", help="a parameter of the flow")
    add("ls", ls_command, "list the flow runs")
    show = add("show", show_command, "show a flow run")
    show.add_argument("run", metavar="RUN", help="the id of a flow run, or its unique beginning")
    words = "let a paused flow run go on, or run a suspended, crashed or failed one again; what ended is kept"
    resume = add("resume", resume_command, words)
    resume.add_argument("run", metavar="RUN", help="the id of a flow run, or its unique beginning")
    resume.add_argument("--steal", action="store_true", help="take the run from a process that is alive but stopped")
    resume.add_argument("--code", metavar="TARGET", help="where the flow is, if not where it was")
    resume.add_argument("--input", metavar="JSON", help="what a paused run asked for, as a JSON object")
    resume.add_argument("--no-run", action="store_true", help="only mark a suspended run as resumed")
    cancel = add("cancel", cancel_command, "ask a flow run to stop; a running one does so at its next task call")
    cancel.add_argument("run", metavar="RUN", help="the id of a flow run, or its unique beginning")
    words = "run deferred task runs and scheduled, resumed and orphaned flow runs, until SIGTERM or Ctrl-C"
    serve = add("serve", serve_command, words)
    words = "path.py:name or module:name of a task or flow, or the name of a deployment: flow/name"
    serve.add_argument("targets", metavar="TARGET", nargs="+", help=words)
    serve.add_argument("--limit", type=_limit, default=10, metavar="N", help="how many run at a time (10), or none")
    serve.add_argument("--status-port", type=int, metavar="PORT", help="answer GET /status on this port")
    gc = add("gc", gc_command, "delete flow runs that ended long ago")
    gc.add_argument("--older-than", required=True, metavar="AGE", help="for example 30d, 12h, 90m")
    vendor = add("vendor", vendor_command, "copy this package into another program, or check a copy")
    vendor.add_argument("destination", metavar="DEST", help="the folder that holds the copy")
    vendor.add_argument("--name", default="microflow", help="what the copied package is called (default: %(default)s)")
    vendor.add_argument("--check", action="store_true", help="only say whether the copy that is there was changed")
    vendor.set_defaults(needs_home=False)
    return parser


def _client(command: object) -> SyncClient:
    home = readable_home() if command in (ls_command, show_command) and current_settings().store is None else None
    if home is not None:  # on a read-only disk what is there can be looked at all the same
        return SyncClient(FileStore(home))
    try:
        return current_client()
    except ConfigurationError as problem:  # the settings are fine, so it is the place
        raise StorageError(str(problem)) from problem


# ------------------------------------------------------------------------------------------------- commands


def run_command(options: argparse.Namespace, client: SyncClient) -> int:
    """``run TARGET``."""
    with _stdout_for_json(options.json):
        flow = load_flow_from_entrypoint(options.target)
        parameters = _parameters(flow, options.param)
        run = client.new_flow_run(flow)
        live = client.start(run, flow, parameters, Pending(), own=True)
        state = _execute(flow, live, parameters)
    return _report_end(options, live.run, state)


def resume_command(options: argparse.Namespace, client: SyncClient) -> int:
    """``resume RUN``. A paused run goes on where it is; a completed one is reported as it is; any other that nobody
    runs is run again."""
    run = client.fold(client.find_run_id(options.run))
    recorded = run.flow_run.state
    if recorded is not None and recorded.is_paused():
        run = _resume(options, client, run)
        recorded = run.flow_run.state
        if options.no_run or not (recorded is not None and recorded.is_resuming()):
            return _report_request(options, run)
    elif options.input is not None:
        raise UsageError(f"flow run {run.run_id} is not paused, so it takes no --input; it is in state {recorded}")
    elif options.no_run and not (recorded is not None and recorded.is_resuming()):
        client.resume_flow_run(run.run_id)
        return _report_request(options, client.fold(run.run_id))
    run = client.free_run(run.run_id, steal=options.steal)
    recorded = run.flow_run.state
    ran = None if recorded is not None and recorded.is_completed() else _run_again(options, client, run)
    if ran is not None:
        return _report_end(options, *ran)
    run = client.fold(run.run_id)
    assert run.flow_run.state is not None
    print(f"flow run {run.run_id} has completed already; nothing was run", file=sys.stderr)
    return _report_end(options, run, run.flow_run.state)


def _resume(options: argparse.Namespace, client: SyncClient, run: Run) -> Run:
    """Resume a paused run, and give it as it is then."""
    given = None
    if options.input is not None:
        try:
            given = parse(options.input)
        except ValueError as problem:
            raise UsageError(f"--input {_cut(options.input)} is not JSON ({problem})") from problem
        if not isinstance(given, dict):
            raise UsageError(f"--input {_cut(options.input)} is no JSON object; write --input '{{\"name\": value}}'")
    try:
        client.resume_flow_run(run.run_id, given, queue=options.no_run)
    except RuntimeError as refused:  # what was given does not fit what the pause asked for, or nobody could run it
        if isinstance(refused, MicroflowException):
            raise
        raise UsageError(str(refused)) from refused
    return client.fold(run.run_id)


def cancel_command(options: argparse.Namespace, client: SyncClient) -> int:
    """``cancel RUN``. Status 0 says that it was asked to stop, 1 that it had ended already."""
    run_id = client.find_run_id(options.run)
    before = client.fold(run_id).flow_run.state
    client.cancel_flow_run(run_id)
    status = _report_request(options, client.fold(run_id))
    return FAILED if before is not None and before.is_final() else status


def _report_request(options: argparse.Namespace, run: Run) -> int:
    """Tell what a request brought about, without waiting for what comes of it."""
    state = run.flow_run.state
    report = report_of(run, state)
    print(json.dumps(report) if options.json else f"{run.run_id}  {printable(run.flow_run.flow_name)}  {state}")
    return COMPLETED


def serve_command(options: argparse.Namespace, client: SyncClient) -> int:
    """``serve TARGET …``. What runs when it is told to stop is finished."""
    served = [_served(target, client) for target in options.targets]
    for count, target in enumerate(options.targets, 1):
        try:
            Worker(*served[:count])
        except (TypeError, ValueError) as refused:  # it is no task or flow, or the second flow of that name
            raise UsageError(f"{target}: {refused}") from refused
    serve(*served, limit=options.limit, status_server_port=options.status_port, _sync=True)
    return COMPLETED


def _served(target: str, client: SyncClient) -> Any:
    """What a target names; the code that a deployment names is imported only if nobody else can have written that."""
    if ":" in target or "/" not in target or target.endswith(".py"):
        return load_entrypoint(target)
    deployment = client.read_deployment(target)
    if deployment.entrypoint is None:
        raise UsageError(f"deployment {target} does not say where its flow is; name the flow itself: path.py:flow")
    _check_private(client, deployment.entrypoint)
    return load_entrypoint(deployment.entrypoint)


def _limit(text: str) -> int | None:
    if text == "none":
        return None
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def ls_command(options: argparse.Namespace, client: SyncClient) -> int:
    """``ls``. A run whose log is damaged is listed as far as it can be read; of one that has ended only the first and
    the last line are looked at."""
    reports: list[Report] = []
    rows: list[tuple[str, ...]] = [("ID", "STATE", "FLOW", "NAME", "STARTED", "SECONDS")]
    worst = COMPLETED
    for run, problem in _every_run(client, client.glance):
        if problem is not None:
            print(f"microflow: {printable(str(problem))}", file=sys.stderr)
            worst = max(worst, _status_of_error(problem))
        if run is not None and options.json:
            reports.append(report_of(run, seen_state(run, client, problem)))
        elif run is not None:
            rows.append(row_of(run, client, problem))
    if options.json:
        print(json.dumps(reports))
    else:
        print_table(rows)
    return worst


def _every_run(
    client: SyncClient, read: Callable[[str], tuple[Run, MicroflowException | None]]
) -> Iterator[tuple[Run | None, MicroflowException | None]]:
    """Each run as far as `read` can read it, with what is wrong with its log. The trouble of one run is not that of
    the others; one whose creator was killed in its first line was never there."""
    for run_id in client.store.list():
        try:
            run, problem = read(run_id)
        except ObjectNotFound:
            continue
        except MicroflowException as error:
            yield None, error
        else:
            yield (run if run.header else None), problem


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Without looking for garbage: all that is read of a run stays, and to look through it again and again takes half
    of the time (2.2 of 4.0 s for a run of 100,000 task runs). This is a program with one thread, so it may say so."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_nothing_collected()
def show_command(options: argparse.Namespace, client: SyncClient) -> int:
    """``show RUN``. What stands before a damaged line is shown, then the damage is reported."""
    run, problem = client.fold_what_is_readable(client.find_run_id(options.run))
    if not run.header:
        raise problem or UsageError(f"flow run {run.run_id} holds no records")
    seen = seen_state(run, client, problem)
    report = report_of(run, seen)
    if options.json:
        print(json.dumps(report))
    else:
        print_run(run, report, seen)
    if problem is not None:
        raise problem
    return COMPLETED


def gc_command(options: argparse.Namespace, client: SyncClient) -> int:
    """``gc --older-than AGE``. Only runs whose end is on record are deleted: a killed run is kept, it can be
    resumed. So is a log that cannot be read, which is said."""
    limit = now_us() - int(_seconds(options.older_than) * 1e6)
    deleted, worst = [], COMPLETED
    for run, problem in _every_run(client, client.fold_what_is_readable):
        if problem is not None:
            print(f"microflow: {printable(str(problem))}", file=sys.stderr)
            worst = max(worst, _status_of_error(problem))
        state = None if run is None or problem is not None else run.flow_run.state
        if run is not None and state is not None and state.is_final() and state.at < limit:
            deleted.append(report_of(run, state))  # before its result files are gone
            client.delete_flow_run(run.run_id)
    print(json.dumps(deleted) if options.json else f"deleted {len(deleted)} flow run(s)")
    return worst


def vendor_command(options: argparse.Namespace, client: None) -> int:
    """``vendor DEST``, and ``vendor --check DEST``, which fails when the copy was changed."""
    from .ext import vendor  # hashlib and importlib.resources: for this command alone

    if not options.check:
        copy = str(vendor.vendor(options.destination, options.name))
        print(json.dumps({"copy": copy}) if options.json else f"copied to {copy}")
        return COMPLETED
    problems = vendor.check(options.destination, options.name)
    if options.json:
        print(json.dumps({"problems": problems}))
    else:
        print("\n".join(map(printable, problems)) or "unchanged")
    return FAILED if problems else COMPLETED


# ---------------------------------------------------------------------------------------------------- running


def _parameters(flow: Flow[Any, Any], given: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--param {text!r} has no '='; write --param NAME=JSON")
        if name not in flow.parameters.names:
            takes = ", ".join(flow.parameters.names) or "none"
            raise UsageError(f"flow {flow.name!r} has no parameter {name!r}; its parameters are: {takes}")
        if name in values:
            raise UsageError(f"--param {name} is given twice")
        try:
            values[name] = parse(value)
        except ValueError as problem:
            hint = "" if value[:1] in '{["' else f"; a text needs quotes: --param '{name}={json.dumps(_cut(value))}'"
            raise UsageError(f"--param {name}={_cut(value)} is not JSON ({problem}){hint}") from problem
    parameters = flow.bind((), values)
    if flow.should_validate_parameters:
        try:
            flow.validate_parameters(parameters)  # before anything is recorded; what is recorded is what was given
        except ParameterTypeError as problem:
            heading, *problems = str(problem).split("\n - ")
            raise UsageError(f"{heading} {'; '.join(problems)}") from problem
    return parameters


def _cut(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"


def _entrypoint(run: Run, client: SyncClient) -> str:
    entrypoint = run.flow_run.entrypoint
    if entrypoint is None:
        raise UsageError(f"flow run {run.run_id} does not say where its flow is; name it with --code path.py:flow")
    _check_private(client, f"--code {entrypoint}")
    return entrypoint


def _check_private(client: SyncClient, cure: str) -> None:
    if not client.store.private:
        raise UsageError(
            f"others can write to {client.store.location}, so the code that is named there is not imported; "
            f"name the flow yourself: {cure}"
        )


def _run_again(options: argparse.Namespace, client: SyncClient, run: Run) -> tuple[Run, State[Any]] | None:
    """Take the run over and run it; None when another process completed it meanwhile."""
    with _stdout_for_json(options.json):
        flow = load_flow_from_entrypoint(options.code or _entrypoint(run, client))
        try:
            live, parameters, _ = take_over(flow, run.run_id, steal=options.steal, force=True)
        except NotPausedError:
            return None
        return live.run, _execute(flow, live, parameters)


def _execute(flow: Flow[Any, Any], live: LiveRun, parameters: dict[str, Any]) -> State[Any]:
    """Run the claimed run to its end; gives the state in which it ended, however that came about."""
    with Progress(live, sys.stderr):
        try:
            outcome = run_to_state(flow, parameters, live)
            if flow.isasync:
                import asyncio  # only for coroutine flows

                outcome = asyncio.run(outcome)
        except Pause as pause:
            assert pause.state is not None
            outcome = pause.state
        except BaseException as error:  # sys.exit, Ctrl-C, a bad run name: recorded, and reported as recorded
            outcome = live.flow_run.state
            if outcome is None or not outcome.is_final():
                raise
            if isinstance(error, KeyboardInterrupt):
                print(f"microflow: interrupted; go on with: {_PROGRAM} resume {live.run_id}", file=sys.stderr)
    state: State[Any] = outcome
    return state


@contextmanager
def _stdout_for_json(wanted: bool) -> Iterator[None]:
    """With `wanted`, everything that is printed in the block, also by C code and child processes, goes to
    standard error."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(real, 1)
        os.close(real)


def _report_end(options: argparse.Namespace, run: Run, state: State[Any]) -> int:
    report = report_of(run, state)
    if options.json:
        print(json.dumps(report))
    else:
        print(f"{run.run_id}  {printable(run.flow_run.flow_name)}  {printable(str(state))}")
        text = json.dumps(report["result"])
        if report["result"] is not None and len(text) <= 200:
            print(f"result: {text}")
    return _status_of(state)


def _status_of(state: State[Any]) -> int:
    if state.type is StateType.COMPLETED:
        return COMPLETED
    return PAUSED if state.type is StateType.PAUSED else FAILED


def _seconds(age: str) -> float:
    try:
        seconds = float(age[:-1]) * _UNITS[age[-1:]]
    except (KeyError, ValueError):
        raise UsageError(f"--older-than {age!r} is no age; write a number and one of s, m, h, d, w: 30d") from None
    if not 0 <= seconds < time.time():
        raise UsageError(f"--older-than {age!r} is out of range")
    return seconds
