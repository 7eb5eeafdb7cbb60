# SPDX-License-Identifier: Apache-2.0
"""Worker processes: started, driven, killed and replaced, without /dev/shm.

Goal: one task at a time in each process; a process that dies takes that one with it and no other; one that is too
slow is killed; none outlives the runner that started it, not even when the runner's process is killed.

What does not work: ``ProcessPoolExecutor`` and everything of ``multiprocessing`` that has a lock or queue need
/dev/shm, which AWS Lambda has not; one dead worker breaks the whole pool; its fork servers and trackers stay behind;
and each of its children imports the main program, which starts its flow once more if it has no guard.

The rule: a worker is a plain child with one socket. It reads a call, runs it, writes the outcome
(``_worker_process``). How a worker is started is a *launcher*'s matter: from a *fork server* of our own, a
single-threaded process that has the package imported and forks on request (the default), as a fresh interpreter
(``spawn``), or by forking this process (``fork``: fast, and dangerous where other threads hold locks; only when asked
for).

Who notices a death: the driver waits for the socket *and* for the process (a pidfd), because a child that the task
started may hold the socket open. A worker notices the death of its owner by the *life* line, whose other end only the
owner has, and ends at once, whatever its task does. So no fork of the owner, whoever makes it, may keep an end of the
owner's: each closes them all first (:data:`_kept_from_forks`). And what ends a connection shuts it down, which reaches
the other side also past a copy that somebody has kept.

Known holes: processes that a killed task had started itself go on. A task that forks does so beside the thread that
watches the life pipe, of which Python 3.12 and later warn. A death behind a socket that is held open is noticed
within a second where ``os.pidfd_open`` is refused, and, where there is no ``/proc`` either (not Linux), only when the
socket is let go, or by the time limit.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from ._captured_logs import forget_inherited_handlers
from ._forks import new_lock
from ._worker_process import CHUNK, HEAD, head, live_as_fork, receive
from .exceptions import WorkerLost

if TYPE_CHECKING:
    from collections.abc import Callable


_PACKAGE = __name__.rpartition(".")[0]
#: how often a death is looked for where no pidfd tells of it, in seconds
LOOK = 1.0
#: how long a worker that was told to end may take
GRACE = 5.0


# ------------------------------------------------------------------------------------------------- the launchers


#: both ends of each connection of this process to its workers and their fork server
_kept_from_forks: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    _kept_from_forks.update((ours, theirs))
    return ours, theirs


def _after_fork_in_child() -> None:
    for end in list(_kept_from_forks):
        end.close()
    for worker in list(_workers):
        worker.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _hang_up(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:  # the other side has ended, or this is closed already
        pass
    end.close()


class LauncherGone(Exception):
    """The fork server has ended: it starts no more workers and cannot say how those it started ended."""

    def __init__(self, how: str, has_served: bool) -> None:
        super().__init__(f"the fork server {how}; it is started by {sys.executable}")
        #: whether it had started a worker: else there is little hope for another server
        self.has_served = has_served


class Launcher(Protocol):
    """Starts workers and says how they ended."""

    def start(self, link: socket.socket, initialize: bytes) -> int:
        """Start a worker on its end of a socket pair; gives its pid."""

    def reap(self, pid: int) -> int | None:
        """Wait for a worker that has ended, or is about to; gives its wait status, None when nobody can tell it."""

    def close(self) -> None:
        """End what the launcher itself has started."""


class _LaunchedHere:
    """What launchers have in common: the life line."""

    def __init__(self) -> None:
        # close-on-exec: nobody but the workers gets the one end, and nobody but this process the other
        self.life, self._life_end = _pair()

    def close(self) -> None:
        _hang_up(self._life_end)
        self.life.close()


def _interpreter(call: str, *passed: int) -> subprocess.Popen[bytes]:
    """A fresh interpreter that calls a function of ``_worker_process``. It does not import the main program."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from {_PACKAGE} import _worker_process; _worker_process.{call}"
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
    return subprocess.Popen([sys.executable, *flags, "-c", code], pass_fds=passed, stdin=subprocess.DEVNULL)


class SpawnLauncher(_LaunchedHere):
    """Each worker is a fresh interpreter."""

    def __init__(self) -> None:
        super().__init__()
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, link: socket.socket, initialize: bytes) -> int:
        """See :class:`Launcher`."""
        passed = (link.fileno(), self.life.fileno())
        child = _interpreter(f"start_anew{passed}", *passed)
        self._children[child.pid] = child
        return child.pid

    def reap(self, pid: int) -> int:
        """See :class:`Launcher`."""
        code = self._children.pop(pid).wait()
        return -code if code < 0 else code << 8


class ForkServerLauncher(_LaunchedHere):
    """Workers are forked from a process that has everything imported."""

    #: what workers need besides ``_worker_process``, to be imported once
    preload: tuple[str, ...] = ("tasks", "flows")

    def __init__(self) -> None:
        super().__init__()
        self._lock = new_lock()  # one request at a time; it lasts as long as a fork
        self._has_served = False
        self._control, theirs = _pair()
        with theirs:
            names = [f"{_PACKAGE}.{name}" for name in self.preload]
            try:
                self._server = _interpreter(f"serve_forks({theirs.fileno()}, {names!r})", theirs.fileno())
            except BaseException:
                self._control.close()
                super().close()
                raise

    def _ask(self, request: bytes, passed: list[int], more: bytes = b"") -> int:
        with self._lock:
            try:
                socket.send_fds(self._control, [request], passed)
                self._control.sendall(more)
                answer = int.from_bytes(receive(self._control, 8), "big", signed=True)
            except (OSError, EOFError):
                raise LauncherGone(self._end_server(), self._has_served) from None
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer))
        return answer

    def start(self, link: socket.socket, initialize: bytes) -> int:
        """See :class:`Launcher`."""
        request = b"F" + len(initialize).to_bytes(8, "big")
        pid = self._ask(request, [link.fileno(), self.life.fileno()], initialize)
        self._has_served = True
        return pid

    def reap(self, pid: int) -> int | None:
        """See :class:`Launcher`."""
        try:
            return self._ask(b"W" + pid.to_bytes(8, "big"), [])
        except (LauncherGone, OSError):
            return None

    def _end_server(self) -> str:
        _hang_up(self._control)
        try:
            code = self._server.wait(GRACE)
        except subprocess.TimeoutExpired:  # stopped, or at its imports
            self._server.kill()
            code = self._server.wait()
        return _how_it_ended(code)

    def close(self) -> None:
        """End the fork server."""
        self._end_server()
        super().close()


class ForkLauncher(_LaunchedHere):
    """Workers are forks of this process."""

    def start(self, link: socket.socket, initialize: bytes) -> int:
        """See :class:`Launcher`."""
        kept = (os.dup(link.fileno()), os.dup(self.life.fileno()))  # the fork closes the others
        try:
            pid = os.fork()
            if pid == 0:
                forget_inherited_handlers()
                live_as_fork(kept[0], kept[1], initialize)
            return pid
        finally:
            for each in kept:
                os.close(each)

    def reap(self, pid: int) -> int:
        """See :class:`Launcher`."""
        return os.waitpid(pid, 0)[1]


LAUNCHERS: dict[str, Callable[[], Launcher]] = {
    "forkserver": ForkServerLauncher,
    "spawn": SpawnLauncher,
    "fork": ForkLauncher,
}


def default_start_method() -> str:
    """Where descriptors can be passed on and processes forked, a fork server."""
    return "forkserver" if hasattr(os, "fork") and hasattr(socket, "send_fds") else "spawn"


# ----------------------------------------------------------------------------------------------- the owner's side


class InitializerFailed(Exception):
    """A worker's initializer raised; ``packed`` is its error."""

    def __init__(self, packed: tuple[str, bytes]) -> None:
        super().__init__("the initializer of a worker process raised")
        self.packed = packed


class AttemptTimedOut(Exception):
    """The attempt took too long. A worker process of our own was killed; in an executor the attempt may go on, and
    its outcome is dropped."""


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


class Worker:
    """A worker process as its owner sees it. One thread drives it at a time; :meth:`kill` is for any."""

    def __init__(self, launcher: Launcher, initialize: bytes) -> None:
        self._launcher = launcher
        self._link, theirs = _pair()
        with theirs:
            try:
                self.pid = launcher.start(theirs, initialize)
            except BaseException:
                self._link.close()
                raise
        if isinstance(launcher, SpawnLauncher):
            try:
                self._link.sendall(len(initialize).to_bytes(8, "big") + initialize)
            except ConnectionError:  # it has ended, which wait_until_ready tells
                pass
        self._watched = self._watch()
        self._buffer = bytearray()
        #: calls that were begun
        self.calls = 0
        #: why it was killed by us, if it was
        self.killed_for: str | None = None
        self._has_ended = False
        self._status: int | None = None
        # guards the moment between looking whether the process was reaped and killing it
        self._lock = new_lock()
        _workers.add(self)

    def _watch(self) -> int | None:
        try:
            return os.pidfd_open(self.pid)  # type: ignore[attr-defined,unused-ignore]  # Linux
        except (AttributeError, OSError):
            return None

    # ------------------------------------------------------------------------------------------- frames

    def _frame(self, deadline: float | None) -> tuple[bytes, bytes] | None:
        """The next frame; None when the deadline passes. EOFError when the process has ended and said no more."""
        dead = False
        while True:
            buffer = self._buffer
            if len(buffer) >= HEAD and len(buffer) >= (end := HEAD + int.from_bytes(buffer[1:HEAD], "big")):
                letter, data = bytes(buffer[:1]), bytes(buffer[HEAD:end])
                del buffer[:end]
                return letter, data
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            watch = [self._link.fileno()] + ([] if self._watched is None or dead else [self._watched])
            patience = 0.0 if dead else left if self._watched is not None else min(LOOK, left or LOOK)
            ready = _ready(watch, [], patience)
            if self._link.fileno() in ready:
                try:
                    piece = self._link.recv(CHUNK)
                except ConnectionError:
                    piece = b""
                if not piece:
                    raise EOFError
                buffer += piece
            elif dead:
                raise EOFError
            else:  # once more, for what it wrote last
                dead = self._watched in ready or (self._watched is None and self._is_gone())

    def _deliver(self, data: bytes, deadline: float | None) -> bool:
        """Send; False when the deadline passes. EOFError or OSError when the process has ended."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._link.send(rest[:CHUNK], socket.MSG_DONTWAIT) :]
                continue
            except BlockingIOError:  # it does not read as fast
                pass
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            watch = [] if self._watched is None else [self._watched]
            patience = left if watch else min(LOOK, left or LOOK)
            ready = _ready(watch, [self._link.fileno()], patience)
            if self._watched in ready or (not ready and self._watched is None and self._is_gone()):
                raise EOFError
        return True

    def _is_gone(self) -> bool:
        try:
            with open(f"/proc/{self.pid}/stat", encoding="ascii", errors="replace") as file:
                return file.read().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return False

    def wait_until_ready(self) -> None:
        """Wait until the worker takes calls. InitializerFailed or WorkerLost when it never will."""
        try:
            frame = self._frame(None)
        except EOFError:
            raise WorkerLost(f"a worker process ended before it was ready: {self.end()}") from None
        assert frame is not None
        letter, data = frame
        if letter == b"X":
            self.end()
            form, _, packed = data.partition(b"\0")
            raise InitializerFailed((form.decode(), packed))

    def call(self, payload: bytes, timeout: float | None, on_log: Callable[[dict[str, Any]], None]) -> bytes | None:
        """Have one attempt run; its outcome envelope, or None when the process had ended before it began.

        AttemptTimedOut after `timeout` seconds, WorkerLost when the process ends meanwhile; both leave the
        worker dead. `on_log` is called in this thread with what the attempt logs."""
        deadline = None if timeout is None else time.monotonic() + timeout
        begun = False
        try:
            sent = self._deliver(head(b"C", payload), deadline) and self._deliver(payload, deadline)
            while sent and (frame := self._frame(deadline)) is not None:
                letter, data = frame
                if letter == b"S":
                    begun = True
                    self.calls += 1
                elif letter == b"L":
                    on_log(json.loads(data))
                else:
                    return data
            self.kill("it took too long")
            self.end()
            raise AttemptTimedOut
        except (EOFError, OSError):
            how = self.end()
            if not begun and self.killed_for is None:
                return None
            because = "" if self.killed_for is None else f", because {self.killed_for},"
            raise WorkerLost(f"worker process {self.pid} {how}{because} while it ran the task") from None
        except BaseException:  # an interrupt of this thread: the call is given up, and its process with it
            self.kill("its owner was interrupted")
            self.end()
            raise

    # ------------------------------------------------------------------------------------------------ ends

    def kill(self, why: str) -> bool:
        """Kill the process, from any thread; False when it has ended already."""
        with self._lock:
            if self._has_ended:
                return False
            self.killed_for = self.killed_for or why
            try:
                if self._watched is not None:
                    signal.pidfd_send_signal(self._watched, signal.SIGKILL)  # type: ignore[attr-defined,unused-ignore]
                else:
                    os.kill(self.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
            except ProcessLookupError:  # reaped by init, because the fork server is gone
                pass
            return True

    def hang_up(self) -> None:
        """Tell the process to end, without waiting for it."""
        _hang_up(self._link)

    def disown(self) -> None:
        """Let it alone: this process is a fork of its owner's, in which no other thread runs."""
        self._has_ended = True
        if self._watched is not None:
            os.close(self._watched)
            self._watched = None

    def end(self, grace: float = GRACE) -> str:
        """Hang up, see the process to its end, and say how it ended."""
        _hang_up(self._link)
        if self._watched is not None and not _ready([self._watched], [], grace):
            self.kill("it did not end when it was told to")
        with self._lock:
            if not self._has_ended:
                self._status, self._has_ended = self._launcher.reap(self.pid), True
                if self._watched is not None:
                    os.close(self._watched)
                    self._watched = None
        status = self._status
        if status is None:
            return "ended (nobody can tell how)"
        return _how_it_ended(os.waitstatus_to_exitcode(status))


def _ready(to_read: list[int], to_write: list[int], timeout: float | None) -> set[int]:
    """Which descriptors can be read, or written; ``select`` takes no number above 1023."""
    poll = select.poll()
    for descriptor in to_read:
        poll.register(descriptor, select.POLLIN)
    for descriptor in to_write:
        poll.register(descriptor, select.POLLOUT)
    return {ready for ready, _ in poll.poll(None if timeout is None else max(0.0, timeout * 1000))}


def _how_it_ended(code: int) -> str:
    """In words; a code below zero is that of a signal."""
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-code}"
