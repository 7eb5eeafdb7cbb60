# SPDX-License-Identifier: Apache-2.0
"""What runs in a worker process and in the fork server that starts them; their owner's side is ``_processes``.

Frames on the socket: one letter, eight bytes with a length, the data. ``R`` ready, ``X`` the initializer failed (an
error), ``S`` the call has begun, ``L`` a log record, ``O`` the outcome; towards the worker only ``C``, a call.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

from ._attempt import flush, run_envelope
from ._envelope import join, pack_error, split
from .entrypoints import describe_main, resolver_through
from .exceptions import NotTransferable, SerializationError
from .serializers import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable

#: the length of a frame's letter and length
HEAD = 9
#: how much is read or written at once
CHUNK = 1 << 20


def head(letter: bytes, data: bytes) -> bytes:
    return letter + len(data).to_bytes(8, "big")


def send(link: socket.socket, letter: bytes, data: bytes = b"") -> None:
    link.sendall(head(letter, data) + data)


def receive(link: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = link.recv(min(CHUNK, size - len(data)))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def work(link: socket.socket, life: int, initialize: bytes) -> None:
    """The life of a worker process: calls until the owner hangs up. `initialize` is a packed function and its
    arguments, or nothing."""
    threading.Thread(target=_end_with_owner, args=(life,), daemon=True).start()
    write_lock = threading.Lock()  # log records come from any thread

    def emit(record: dict[str, Any]) -> None:
        with write_lock:
            send(link, b"L", json.dumps(record).encode("ascii"))

    try:
        if initialize:
            try:
                _initializer(initialize)()
            except Exception as error:  # the user's function: the owner tells whoever waits for this worker
                form, data = pack_error(error)
                send(link, b"X", form.encode() + b"\0" + data)
                return
        send(link, b"R")
        while True:
            head = receive(link, HEAD)
            payload = receive(link, int.from_bytes(head[1:], "big"))
            send(link, b"S")
            outcome = run_envelope(payload, emit)
            flush()
            with write_lock:
                send(link, b"O", outcome)
    except (EOFError, OSError, KeyboardInterrupt):  # the owner hung up, or Ctrl-C reached everybody while idle
        pass


def _end_with_owner(life: int) -> None:
    os.read(life, 1)  # nothing is ever written
    os._exit(1)


def pack_initializer(fn: Callable[..., object] | None, args: tuple[Any, ...]) -> bytes:
    """An initializer for :func:`work`. NotTransferable when it cannot be sent."""
    if fn is None:
        return b""
    try:
        form, data = pack(fn)
        arguments_form, arguments = pack(args)
    except SerializationError as problem:
        raise NotTransferable(f"the initializer cannot be sent to worker processes: {problem}") from problem
    return join({"forms": [form, arguments_form], "main": describe_main()}, [data, arguments])


def _initializer(packed: bytes) -> Callable[[], object]:
    header, blobs = split(packed)
    resolve = resolver_through(header["main"])
    fn, args = (
        unpack(form, blob, allow_pickle=True, resolve=resolve)
        for form, blob in zip(header["forms"], blobs, strict=True)
    )
    return lambda: fn(*args)


def start_anew(link: int, life: int) -> None:
    """A fresh interpreter begins here (``spawn``)."""
    with socket.socket(fileno=link) as connection:
        size = int.from_bytes(receive(connection, 8), "big")
        work(connection, life, receive(connection, size))
    flush()
    os._exit(0)


def serve_forks(control: int, preload: list[str]) -> None:
    """The fork server begins here: forks workers until its owner hangs up. Single-threaded, so that a fork is safe.

    A request is ``F`` and the length of an initializer, with two descriptors, or ``W`` and a pid. The answer is a
    number of eight bytes, a pid or wait status; less than zero it is the error number of a call that failed."""
    for name in preload:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tasks
    with socket.socket(fileno=control) as owner:
        while True:
            try:
                request, passed, _, _ = socket.recv_fds(owner, HEAD, 2)
                if not request:
                    break
                request += receive(owner, HEAD - len(request))
                number = int.from_bytes(request[1:], "big")
                if request[:1] == b"F":
                    answer = _fork(owner, passed, receive(owner, number))
                else:
                    answer = _wait(number)
                owner.sendall(answer.to_bytes(8, "big", signed=True))
            except (OSError, EOFError):
                break
    os._exit(0)


def _fork(owner: socket.socket, passed: list[int], initialize: bytes) -> int:
    try:
        pid = os.fork()
    except OSError as refusal:  # at the limit of processes or memory: the next may succeed
        return -(refusal.errno or errno.EAGAIN)
    else:
        if pid == 0:
            owner.close()
            live_as_fork(passed[0], passed[1], initialize)
        return pid
    finally:
        for each in passed:
            os.close(each)


def _wait(pid: int) -> int:
    """For a worker that ended or is about to: its place in the process table was kept until now."""
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError as refusal:
        return -(refusal.errno or errno.ECHILD)


def live_as_fork(link: int, life: int, initialize: bytes) -> None:
    """The child of a fork: a worker, and nothing after that."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with socket.socket(fileno=link) as connection:
            work(connection, life, initialize)
        flush()
        status = 0
    finally:
        os._exit(status)
