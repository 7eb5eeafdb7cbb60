# SPDX-License-Identifier: Apache-2.0
"""What a forked child must not take over from its parent.

A fork copies memory and one thread. A lock that another thread held at that moment is held in the child for ever, by
nobody; a context that the forking thread had says that the child is in the midst of its parent's work. Programs with
threads fork all the same: a ``ProcessPoolExecutor`` does on Linux, by default before Python 3.14, and it does so in
the thread that submits, which may be one of a runner's.

The rule: a lock of ours that outlives a call is made by :func:`new_lock`, and is free in every child. What it guards is
changed by single steps, so that a half-changed table is not to be had. Locks of short-lived objects need not be: no
child knows the object. What a thread has in its context belongs to whoever put it there, and is dropped by him.

Known holes: locks that are not ours. logging and threading free theirs; a module that another thread was importing at
the moment of the fork cannot be imported in the child.
"""

from __future__ import annotations

import os
import threading
import weakref

_locks: weakref.WeakSet[threading.Lock] = weakref.WeakSet()


def new_lock() -> threading.Lock:
    """A lock that is free in every fork of this process."""
    lock = threading.Lock()
    _locks.add(lock)
    return lock


def _after_fork_in_child() -> None:
    for lock in list(_locks):
        lock._at_fork_reinit()  # type: ignore[attr-defined]  # as threading and concurrent.futures do with theirs


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
