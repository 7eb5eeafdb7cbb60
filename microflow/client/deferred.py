# SPDX-License-Identifier: Apache-2.0
"""Task runs that wait for a worker: recorded whole, so that any process can run them.

A deferred run has a log of its own, whose id is the task run's; the records of task and states in it are those of any
task run. Its header names a task where that of a flow run names a flow::

    run      ``name`` ``task`` (its key) ``entrypoint`` ``tags`` ``policy`` ``parent_task`` ``parent_flow`` ``cwd``
             ``arguments`` {parameter: kept value}, ``wait_for`` (a kept value), ``context`` (``tags``) and ``main``
             (of the program whose classes are among the arguments: names and place), each only if there is something
             to say

Arguments are carried one by one, as results are kept: JSON first, then a pickle, which is opened again only if nobody
else can have written the store; over 16 KiB in a file. What cannot be carried is refused before anything is
recorded, since a run that nobody can run must not be acknowledged.
"""

from __future__ import annotations

import json
import os
from binascii import b2a_base64
from typing import TYPE_CHECKING, Any

from .._arguments import allow_failure, opaque, quote, unmapped
from .._kept import INLINE_LIMIT, KeptResult
from .._modules import module_name
from .._tagged_json import add_tag, import_resolver
from ..entrypoints import describe_main, resolver_through
from ..exceptions import ObjectNotFound, SerializationError
from ..log import FORMAT, FORMAT_VERSION
from ..serializers import in_main_program, pack
from .fold import state_record, task_record

if TYPE_CHECKING:
    from ..states import State
    from ..stores import Store
    from .fold import Run
    from .objects import TaskRun

for _annotation in (allow_failure, opaque, quote, unmapped):
    add_tag(_annotation.__name__, _annotation, lambda annotation: annotation.unwrap(), _annotation)


def first_line(
    task_run: TaskRun,
    state: State[Any],
    carried: dict[str, Any],
    store: Store,
    *,
    source: str | None,
    entrypoint: str | None,
) -> list[dict[str, Any]]:
    """The records that create a deferred run: header, task, first state. May write files for large arguments, which
    precedes the append of the line that names them. SerializationError, naming the argument, when one of them cannot be
    carried."""
    run_id = task_run.text
    header: dict[str, Any] = {"k": "run", "format": FORMAT, "version": FORMAT_VERSION}
    header.update(reader=FORMAT_VERSION, writer=FORMAT_VERSION, id=run_id, nonce=os.urandom(16).hex())
    header.update(name=task_run.name, task=task_run.task_key)
    parents = task_run.task_inputs.get("__parents__")
    optional = {
        "entrypoint": entrypoint,
        "tags": sorted(task_run.tags),
        "policy": task_run.empirical_policy,
        "parent_task": str(parents[0].id) if parents else None,
        "parent_flow": task_run.flow_run_id and str(task_run.flow_run_id),
        "context": carried.get("context"),
    }
    arguments: dict[str, Any] = carried.get("parameters", {})
    # everything is turned into bytes before the first file is written
    packed = {name: _packed(value, f"argument {name!r}", task_run) for name, value in arguments.items()}
    waited = _packed(carried["wait_for"], "wait_for", task_run) if "wait_for" in carried else None
    of_main = [name for name, (_, data) in [*packed.items(), ("wait_for", waited or ("", b""))] if _is_of_main(data)]
    if of_main:
        optional["main"] = _main_program(of_main[0], task_run)
    optional["arguments"] = {name: _entry(form, data, run_id, store) for name, (form, data) in packed.items()}
    optional["wait_for"] = waited and _entry(*waited, run_id, store)
    header.update({name: value for name, value in optional.items() if value})
    return [header, task_record(task_run, source), state_record(state, run_id, None)]


def _is_of_main(data: bytes) -> bool:
    """Whether a packed value may need the main program of this process to be made again."""
    name = module_name("__main__").encode()
    return b'"%s:' % name in data or in_main_program.__name__.encode() in data or b"\x8c\x08__main__" in data


def _main_program(argument: str, task_run: TaskRun) -> dict[str, Any]:
    main = describe_main()
    if main["place"] is None:
        raise SerializationError(
            f"argument {argument!r} of a deferred run of task {task_run.name!r} cannot be carried to another process: "
            f"its class is defined in a program that is no file. Define it in a module, so that workers can import it."
        )
    return main


def _packed(value: Any, what: str, task_run: TaskRun) -> tuple[str, bytes]:
    try:
        return pack(value)
    except SerializationError as problem:
        raise SerializationError(
            f"{what} of a deferred run of task {task_run.name!r} cannot be carried to another process: {problem}. "
            f"Pass plain values, or futures of runs that are deferred themselves."
        ) from problem


def _entry(form: str, data: bytes, run_id: str, store: Store) -> dict[str, Any]:
    if len(data) > INLINE_LIMIT:
        return {"file": store.put_result(run_id, data), "size": len(data), "format": form}
    return {form: json.loads(data) if form == "json" else b2a_base64(data, newline=False).decode("ascii")}


def carried_by(run: Run) -> dict[str, Any]:
    """What a deferred run was given: ``parameters``, ``wait_for`` and ``context``, those of them that there are.

    SerializationError or MissingResult when a value cannot be made again here."""
    if not run.is_task:
        raise ObjectNotFound(f"{run.run_id} is a flow run, not a deferred task run")
    header, given = run.header, {}
    resolve = resolver_through(header["main"]) if "main" in header else import_resolver
    if "arguments" in header:
        given["parameters"] = {
            name: KeptResult(entry, run.run_id, run.store).load(resolve) for name, entry in header["arguments"].items()
        }
    if "wait_for" in header:
        given["wait_for"] = KeptResult(header["wait_for"], run.run_id, run.store).load(resolve)
    if "context" in header:
        given["context"] = header["context"]
    return given
