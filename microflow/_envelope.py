# SPDX-License-Identifier: Apache-2.0
"""What crosses the border between the owner of a run and a worker: bytes there, bytes back.

Goal: one attempt of a task run is one *call envelope* to a worker and one *outcome envelope* back, whatever carries
them: a pipe of ours, or any ``concurrent.futures.Executor``. Nothing that the carrier does to functions, arguments,
results or exceptions can hurt, because all that it ever sees is ``bytes -> bytes``.

What does not work: to hand functions and arguments to the carrier. Each pickles in its own way, swallows keyword
arguments that it takes for its own, breaks its whole pool when an exception cannot be rebuilt, or takes two equal
calls for one.

The rule: every value is written by us, JSON first, pickle where JSON cannot carry it. A function goes by name. What
cannot be written is found before anything is sent: when the run is submitted, or, for a value that came out of an
upstream run, when it is about to start.

An envelope is four bytes with the length of a JSON header, the header, and then the blobs whose sizes the header
lists. Members of a call's header: ``attempt`` (drawn anew for each attempt, so no two envelopes are equal),
``origin`` (the sending process), ``task``, ``parameters`` (name and form of each), ``main``, ``context``
(``serialize_context``), ``calls``, ``history``, ``levels``, ``transactions``, ``assets``. Of an outcome's:
``attempt``, ``kind``, ``form``, ``logs``, ``calls``, ``news``, ``main``, ``assets``. Both sides are the same
version of the same code.

The main program's module has another name on each side (``__main__`` here, the script's own name or
``__mp_main__`` there): the header's ``main`` tells, and classes are found through it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from ._carried import describe_definition, why_not_findable
from ._tagged_json import NotEncodable, import_resolver
from .entrypoints import MAIN
from .exceptions import NotTransferable, SerializationError
from .serializers import describe_exception, pack, restore_exception, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Packed = tuple[str, bytes]
    Resolver = Callable[[str, str], Any]

#: this process among all that may send or receive
ORIGIN = f"{os.getpid()}-{os.urandom(8).hex()}"

_dumps = json.JSONEncoder(separators=(",", ":")).encode


def is_origin(text: str) -> bool:
    """Whether an envelope was sent by this very process: a worker in a thread. A fork is another process."""
    return text == ORIGIN and ORIGIN.startswith(f"{os.getpid()}-")


def is_of_ancestor(text: str) -> bool:
    """Whether an envelope was sent by the process that this one was forked from."""
    return text == ORIGIN and not is_origin(text)


# ------------------------------------------------------------------------------------------------------- bytes


def join(header: dict[str, Any], blobs: Iterable[bytes]) -> bytes:
    """Header and blobs as one piece."""
    listed = list(blobs)
    text = _dumps({**header, "blobs": [len(blob) for blob in listed]}).encode("ascii")
    return b"".join([len(text).to_bytes(4, "big"), text, *listed])


def split(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """What :func:`join` joined; SerializationError when it is something else."""
    try:
        at = 4 + int.from_bytes(data[:4], "big")
        header = json.loads(data[4:at])
        blobs = []
        for size in header["blobs"]:
            blobs.append(bytes(data[at : at + size]))
            at += size
        if at != len(data):
            raise ValueError(f"{len(data)} bytes where {at} were announced")
    except (ValueError, KeyError, TypeError) as problem:
        raise SerializationError(f"this is no envelope: {problem!r}") from problem
    return header, blobs


# ---------------------------------------------------------------------------------------------- what is sent


def pack_task(task: Any) -> tuple[dict[str, Any], Packed | None]:
    """A task as another process finds it; with the function's pickle where it has no name, as a partial has none.

    NotTransferable, with the cure, for lambdas, closures and what cannot be pickled."""
    described = describe_definition(task)
    if described["entrypoint"] is not None:
        return described, None
    reason = why_not_findable(task.fn)
    try:
        if not hasattr(task.fn, "__code__"):
            return described, pack(task.fn)
    except NotEncodable as problem:
        reason = f"{reason}, and {problem.reason}"
    raise NotTransferable(
        f"task {task.name!r} cannot run in another process: {reason}. Define its function with def at the top level "
        f"of a module, or run it with ThreadPoolTaskRunner."
    )


def pack_argument(task: Any, name: str, value: Any) -> Packed:
    """One argument. NotTransferable, naming the parameter and the cure, when it cannot be sent."""
    try:
        return pack(value)
    except NotEncodable as problem:
        place = name + problem.path.removeprefix("result")
        raise NotTransferable(
            f"argument {name!r} of task {task.name!r} cannot be sent to another process: {place}: "
            f"{problem.reason}. Give what can be pickled, for example a path or an address, and open it in the task; "
            f"or run the task with ThreadPoolTaskRunner."
        ) from problem


# ---------------------------------------------------------------------------------------------- what comes back


def pack_error(error: BaseException) -> Packed:
    """An exception, whatever its class does: with all its parts if they can be written, else described."""
    try:
        return pack(error)
    except SerializationError:
        return "described", _dumps(describe_exception(error)).encode("ascii")


def unpack_error(form: str, data: bytes, resolve: Resolver) -> BaseException:
    """The exception, or a RestoredError that says its type and message."""
    if form == "described":
        return restore_exception(json.loads(data), resolve)
    error = unpack(form, data, allow_pickle=True, resolve=resolve)
    assert isinstance(error, BaseException), "pack_error packs exceptions"
    return error


# ------------------------------------------------------------------------------------------------------ classes


def resolver_of_owner(names: Iterable[str]) -> Resolver:
    """Finds classes in the owner: those of its own main program whatever it was called in the worker."""
    of_main = {*MAIN, *names}

    def resolve(module: str, qualname: str) -> Any:
        return import_resolver("__main__" if module in of_main else module, qualname)

    return resolve


def names_of_main(main: dict[str, Any]) -> list[str]:
    """What the sender's main program is called in this worker, as far as it was loaded."""
    place = main["place"]
    if place is None:
        return []
    names = set(main["names"])
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if place.endswith(".py") and isinstance(file, str) and os.path.abspath(file) == place:
            names.add(name)
    return sorted(names)
