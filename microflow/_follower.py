# SPDX-License-Identifier: Apache-2.0
"""The follower: how a process learns of what others append to the runs that it waits for.

There is nobody who could tell us: no server, and change notices of the operating system neither exist
everywhere nor cross a network file system. So one thread looks at the size of each followed log, 1 ms
after something happened and more and more seldom after that, up to 10 ms. A look costs about 2 µs; what takes longer,
thousands of runs or a slow store, is looked at more seldom, for a fifth of a processor, but four times a second at
least, not counting the look itself.

The thread exists only while somebody follows; it is no daemon, and whoever leaves last waits until it has ended, so
nothing of ours runs after the call that needed it (invariant I10). Except while it is in a callback of the user's
(``lend``): that may take any time, or want what the one who leaves holds. The thread ends by itself then, when the
callback returns; who comes meanwhile, the callback itself perhaps, begins another one.

It publishes each record of a followed log once, unless two who follow the same run started from
different positions: then some come twice. A subscriber looks at the run anyway.

Two things that are no records are published as if they were one, at the end of the log:

* ``orphaned`` ``{"owner": token}``: the owner's process has died. Looked at once a second. A dead owner's
  last words count: the log is read once more after the owner was found dead.
* ``unreadable`` ``{"error": text}``: the log was damaged or deleted, or cannot be read. Published once, and again
  when somebody comes, or when it could be read meanwhile.

Callbacks that still wait do not keep the program from ending: the thread ends when the main thread has, unless another
one is alive that could wait. A function of ``atexit`` can wait all the same, except in Python 3.12, which starts no
thread any more by then: there its wait is refused.

Where no thread can be started, the running event loop looks instead, so a coroutine that waits hears of
others while the loop goes round. Without a loop either nobody could hear, and the wait is refused.

Known holes: two appends that bring the log to the size that it had at the last look are not seen; but a
log only ever grows, except where a failed write is taken back. A loop that looks instead of a thread looks for all
loops of its process, and when it ends before they do, they hear no more.
A callback runs in the thread, and until it returns or somebody comes, those who follow already hear nothing; their
timeouts hold.
"""

from __future__ import annotations

import sys
import threading
import time
from contextvars import Context
from typing import TYPE_CHECKING, Any

from . import _waits
from .events import Record
from .exceptions import ObjectNotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    from .events import Bus
    from .log import Reading

SHORTEST_PAUSE = 0.001
LONGEST_PAUSE = 0.010
THREAD_NAME = "microflow follower"
OWNER_CHECK = 1.0  # seconds between two looks whether an owner is alive


# where the main thread waits for the others at the end of the program, before it calls the functions of atexit
_LAST_WAIT = getattr(getattr(threading, "_shutdown", None), "__code__", None)


def _program_has_ended() -> bool:
    """Whether nobody is left who could wait for news: the main thread has ended, and every thread that keeps the
    interpreter alive is a follower."""
    main = threading.main_thread()
    if main.is_alive():
        return False
    if any(each is not main and not each.daemon and each.name != THREAD_NAME for each in threading.enumerate()):
        return False
    frame = sys._current_frames().get(main.ident or 0)
    if frame is None or _LAST_WAIT is None:
        return True
    while frame is not None and frame.f_code is not _LAST_WAIT:
        frame = frame.f_back
    return frame is not None  # else a function of atexit runs


class _Looking:
    """Who looks: a thread, or the timers of a loop."""

    __slots__ = ("by", "ended", "free", "stop")

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.by: Any = None  # the thread, or the next timer
        self.ended = False  # nothing but the end of the thread is left
        self.free = threading.Event()  # set while nobody needs to wait for the thread: it has ended, or is lent

    def end(self) -> None:
        """Return when nothing of ours runs any more."""
        if not isinstance(self.by, threading.Thread):
            self.by.cancel()
        elif self.by is not threading.current_thread():  # a subscriber may be who leaves
            self.free.wait()
            if self.ended:
                self.by.join()


_here = threading.local()  # `looking`, in a thread of a follower


def lend(fn: Callable[[], object]) -> None:
    """Call `fn`, which is the user's. Who leaves the follower, if this is its thread, does not wait for that."""
    looking: _Looking | None = getattr(_here, "looking", None)
    if looking is None or looking.free.is_set():
        fn()
        return
    looking.free.set()
    try:
        fn()
    finally:
        looking.free.clear()


class _Followed:
    """One run that somebody follows."""

    __slots__ = ("count", "dead", "exists", "next_check", "owner", "position", "run_id", "size", "unreadable")

    def __init__(self, run_id: str, position: int) -> None:
        self.run_id = run_id
        self.position = position  # everything before it was published
        self.size = -1  # of the log at the last look
        self.count = 0  # how many follow
        self.exists = False  # somebody has read it
        self.owner: str | None = None
        self.next_check = 0.0
        self.dead: str | None = None  # the owner whose death was published
        self.unreadable = False


class Follower:
    """Publishes what others append to the followed runs, in one thread of its own."""

    def __init__(
        self,
        bus: Bus,
        size: Callable[[str], int],
        read: Callable[[str, int], Reading],
        is_alive: Callable[[str], bool],
    ) -> None:
        self._bus = bus
        self._size = size  # of a log in bytes; 0 if there is none
        self._read = read  # the foreign records from a position on
        self._is_alive = is_alive
        # Guards the fields below. Not held while a subscriber runs or a log is read.
        self._mutex = threading.Lock()
        self._followed: dict[str, _Followed] = {}
        self._looking: _Looking | None = None

    def follow(self, run_id: str, position: int) -> Following:
        """See ``Store.follow``."""
        return Following(self, run_id, position)

    def enter(self, run_id: str, position: int) -> None:
        with self._mutex:
            before = self._looking
            if before is None or before.free.is_set():
                self._looking = self._begin()  # it may raise: then nothing has changed
                if before is not None:
                    before.stop.set()
            followed = self._followed.setdefault(run_id, _Followed(run_id, position))
            followed.count += 1
            followed.position = min(followed.position, position)
            followed.exists = followed.exists or position > 0
            followed.size = -1
            followed.unreadable = False

    def _begin(self) -> _Looking | None:
        looking = _Looking()
        looking.by = threading.Thread(target=self._run, args=(looking,), name=THREAD_NAME)
        try:
            looking.by.start()
        except RuntimeError as error:
            if _waits.loop_is_running():
                Context().run(self._look_later, looking, SHORTEST_PAUSE)
            elif _waits.IS_ALONE:
                return None  # whoever blocks for news is told that none can come; sleeping is fine
            else:
                raise RuntimeError(f"no thread can be started to hear of other processes: {error}") from error
        return looking

    def leave(self, run_id: str) -> None:
        with self._mutex:
            followed = self._followed[run_id]
            followed.count -= 1
            if not followed.count:
                del self._followed[run_id]
            if self._followed or self._looking is None:
                return
            looking, self._looking = self._looking, None
            looking.stop.set()
        looking.end()

    def _run(self, looking: _Looking) -> None:
        _here.looking = looking
        try:
            pause = SHORTEST_PAUSE
            while not looking.stop.wait(pause):
                if _program_has_ended():
                    with self._mutex:
                        if self._looking is looking:
                            self._looking = None  # a function of atexit may follow yet, and begins another thread
                    return
                pause = self._look_at_all(looking.stop, pause)
        finally:
            looking.ended = True
            looking.free.set()

    def _look_later(self, looking: _Looking, pause: float) -> None:
        looking.by = _waits.call_later(pause, self._look_on_loop, looking, pause)

    def _look_on_loop(self, looking: _Looking, pause: float) -> None:
        pause = self._look_at_all(looking.stop, pause)
        with self._mutex:
            if not looking.stop.is_set():
                self._look_later(looking, pause)

    def _look_at_all(self, stop: threading.Event, pause: float) -> float:
        """Publish what is new in all logs; gives the pause until the next look."""
        with self._mutex:
            followed = [] if stop.is_set() else list(self._followed.values())
        news, began = False, time.monotonic()
        for each in followed:
            if stop.is_set():
                break  # a callback has returned that nobody waited for
            try:
                news = self._look(each) or news
            except Exception as error:  # also what a store of the user's raises: the others' runs are to be heard of
                each.size = -1  # it is read again, even if it is as long as before
                self._give_up(each, error)
        pause = SHORTEST_PAUSE if news else min(pause * 1.5, LONGEST_PAUSE)
        # so many or so slow that looking would take more than a fifth of a processor
        return max(pause, min(4 * (time.monotonic() - began), 0.25))

    def _look(self, followed: _Followed) -> bool:
        """Publish what is new in one log; says whether anything was."""
        news = False
        size = self._size(followed.run_id)
        if size != followed.size:
            followed.size = size
            news = self._publish_new(followed)
        now = time.monotonic()
        if now >= followed.next_check:
            followed.next_check = now + OWNER_CHECK
            owner = followed.owner
            if owner is not None and owner != followed.dead and not self._is_alive(owner):
                news = self._publish_new(followed) or news
                if followed.owner == owner:
                    followed.dead = owner
                    self._say(followed, "orphaned", {"owner": owner})
        return news

    def _publish_new(self, followed: _Followed) -> bool:
        start = followed.position
        try:
            reading = self._read(followed.run_id, start)
        except ObjectNotFound:
            if not followed.exists:
                return False  # not created yet
            raise
        with self._mutex:
            if followed.position == start:  # else somebody came who wants older records as well
                followed.position = max(start, reading.position)
        followed.exists = True
        followed.owner = reading.owner
        self._bus.publish(reading.records)
        if reading.problem is not None:
            self._give_up(followed, reading.problem)
        else:
            followed.unreadable = False
        return reading.position > start

    def _give_up(self, followed: _Followed, error: Exception) -> None:
        """Tell those who wait, once, that they may wait in vain; looking goes on."""
        if not followed.unreadable:
            followed.unreadable = True
            self._say(followed, "unreadable", {"error": f"{type(error).__name__}: {error}"})

    def _say(self, followed: _Followed, kind: str, data: dict[str, Any]) -> None:
        now = time.time_ns() // 1000
        self._bus.publish([Record(followed.run_id, followed.position, None, now, kind, data)])


class Following:
    """``with``: as long as the block runs, the run is followed."""

    __slots__ = ("_follower", "_position", "_run_id")

    def __init__(self, follower: Follower, run_id: str, position: int) -> None:
        self._follower = follower
        self._run_id = run_id
        self._position = position

    def __enter__(self) -> None:
        self._follower.enter(self._run_id, self._position)

    def __exit__(self, *error: object) -> None:
        self._follower.leave(self._run_id)
