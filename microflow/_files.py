# SPDX-License-Identifier: Apache-2.0
"""Every operating-system call on a file, one small function each.

Callers say ``_files.write(...)``, never ``os.write(...)``. So a test can make the Nth call fail, fall
short or never return by replacing one name here; without that seam the crash tests could not exist.
Nothing here decides anything about logs.

What all of these functions hold to:

* Files are made 0600 and folders 0700, whatever the umask is.
* A file is opened without following a link and without blocking on a planted FIFO. Then it is looked
  at through its descriptor: a regular file, ours, with exactly one name.
* Locks are ``flock``, on the descriptor of the file itself. ``fcntl.lockf`` would be wrong twice: any
  ``open`` and ``close`` of the same file elsewhere in the process drops the lock, and it excludes no
  thread. A lock belongs to the open file, so it ends with the last process that has it open. A child
  made by ``os.fork`` would keep its parent's locks alive; therefore it closes, as its first act, every
  descriptor that was opened here (:func:`_after_fork_in_child`), and never unlocks one.

Known holes. Without the ``fcntl`` module (Windows, Pyodide) a lock is always granted: one process at a
time may use a store there. On NFS a lost lock shows itself as EIO on the descriptor, and appends are
not atomic. Windows cannot sync a folder.
"""

from __future__ import annotations

import errno
import os
import stat as modes
import threading
import time

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # Windows, Pyodide: see "Known holes"

PATIENCE = 30.0  # seconds that `lock` waits before it gives up
_FIRST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.05

# O_BINARY is Windows', the others are missing there; Python itself adds "not inherited by exec"
_ALWAYS = (
    getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)

# What fsync answers on a file system that has no such call: only then is there something else to try.
_UNSUPPORTED = frozenset({errno.ENOTSUP, errno.EINVAL, errno.ENOTTY})

# All descriptors opened here and not closed. Guarded by _mutex, which a fork takes as well: no child can
# be born between the opening of a file and its entry into the set.
_descriptors: set[int] = set()
_mutex = threading.RLock()


# ------------------------------------------------------------------------------------ open and close


def open_log(path: str, *, writable: bool) -> int:
    """Open a file of ours that exists: for reading, or for reading and appending."""
    return _open(path, os.O_RDWR | os.O_APPEND if writable else os.O_RDONLY)


def open_new(path: str) -> int:
    """Make a file and open it for reading and appending. FileExistsError if the name is taken."""
    return _open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL)


def _open(path: str, flags: int) -> int:
    with _mutex:
        descriptor = os.open(path, flags | _ALWAYS, 0o600)
        _descriptors.add(descriptor)
    try:
        if not flags & os.O_CREAT:
            _check_ordinary(path, os.fstat(descriptor))
        elif hasattr(os, "fchmod"):
            os.fchmod(descriptor, 0o600)  # the umask may have taken bits away
    except BaseException:
        close(descriptor)
        raise
    return descriptor


def _check_ordinary(path: str, info: os.stat_result) -> None:
    """Refuse what somebody else may have put in the place of our file."""
    if info.st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, "the file was removed while it was being opened", path)
    if not modes.S_ISREG(info.st_mode):
        raise PermissionError(errno.EPERM, "not a regular file", path)
    if info.st_nlink != 1:
        raise PermissionError(errno.EPERM, "the file has a second name (a hard link)", path)
    if not _is_ours(info):
        raise PermissionError(errno.EPERM, "the file belongs to another user", path)


def _is_ours(info: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or info.st_uid == os.geteuid()


def duplicate(descriptor: int) -> int:
    """A second descriptor of the same open file; a lock on the one is a lock on the other."""
    with _mutex:
        second = os.dup(descriptor)
        _descriptors.add(second)
    return second


def close(descriptor: int) -> None:
    """Close what a function above gave; with its last descriptor a file loses its lock.

    A close that fails has closed all the same, and says nothing about what was written: sync does.
    """
    with _mutex:
        _descriptors.discard(descriptor)
        try:
            os.close(descriptor)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise  # a mistake of ours


# ----------------------------------------------------------------------------------- read and write


def read_at(descriptor: int, length: int, offset: int) -> bytes:
    """Up to `length` bytes from `offset` on; fewer where the file ends, or when the call falls short."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, length, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)  # Windows; writes are appends, so moving the position is harmless
    return os.read(descriptor, length)


def write(descriptor: int, data: bytes) -> int:
    """Append `data` in one call; returns how many bytes were written, which may be fewer."""
    return os.write(descriptor, data)


def size(descriptor: int) -> int:
    """The length of an open file in bytes (a third of the price of fstat)."""
    return os.lseek(descriptor, 0, os.SEEK_END)


def truncate(descriptor: int, length: int) -> None:
    """Cut an open file to `length` bytes."""
    os.ftruncate(descriptor, length)


def stat_open(descriptor: int) -> os.stat_result:
    """What the system knows about an open file."""
    return os.fstat(descriptor)


def stat_path(path: str) -> os.stat_result:
    """What the system knows about a name; a link is not followed."""
    return os.lstat(path)


# ---------------------------------------------------------------------------------------------- sync


def sync_data(descriptor: int) -> None:
    """Return when the bytes of the file and its length are on the disk."""
    _flush(descriptor, getattr(os, "fdatasync", os.fsync))


def sync_full(descriptor: int) -> None:
    """Return when the file and all that the system knows about it are on the disk."""
    _flush(descriptor, os.fsync)


def sync_folder(path: str) -> None:
    """Return when the names in a folder are on the disk. Does nothing where folders cannot be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _ALWAYS)
    try:
        _flush(descriptor, os.fsync)
    finally:
        os.close(descriptor)


def _flush(descriptor: int, plain: object) -> None:
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS, where fsync stops at the drive's own cache
    if full is not None:
        try:
            fcntl.fcntl(descriptor, full)
            return
        except OSError as error:
            # a real failure must not be asked again: the second answer would be a false "done"
            if error.errno not in _UNSUPPORTED:
                raise
    assert callable(plain)
    plain(descriptor)


# --------------------------------------------------------------------------------------------- locks


def lock(descriptor: int, patience: float | None = None) -> None:
    """Lock an open file against all other openings of it. TimeoutError after `patience` seconds.

    It asks again and again, with pauses that grow from 0.5 to 50 ms, instead of waiting in the kernel:
    a holder that was stopped (SIGSTOP) would otherwise stop everybody for ever.
    """
    pause, deadline = _FIRST_PAUSE, 0.0
    while not try_lock(descriptor):
        now = time.monotonic()
        if not deadline:
            deadline = now + (PATIENCE if patience is None else patience)
        if now >= deadline:
            raise TimeoutError(errno.ETIMEDOUT, "the lock is held by another process")
        jitter = (1 + os.urandom(1)[0] / 255) / 2  # or those who collided once would collide again
        time.sleep(min(pause * jitter, deadline - now))
        pause = min(pause * 2, _LONGEST_PAUSE)


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file if nobody holds it now; says whether that worked.

    Shared locks do not exclude each other: several may look at the same time whether an exclusive
    lock is held.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Give the lock back. Harmless without one; never called for a lock of the parent process."""
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


# --------------------------------------------------------------------------------- names and folders


def replace(source: str, target: str) -> None:
    """Give a file another name; whatever had that name is gone. Readers see the one or the other."""
    os.replace(source, target)


def unlink(path: str) -> None:
    """Remove a file."""
    os.unlink(path)


def list_folder(path: str) -> list[str]:
    """The names in a folder, in no order; none if there is no such folder."""
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def remove_folder(path: str) -> None:
    """Remove an empty folder."""
    os.rmdir(path)


def make_private_folder(path: str, *, durable: bool = False) -> None:
    """Make a folder, and those above it that are missing, each 0700; `durable` syncs their names.

    A folder that exists already must be ours and writable for us alone: else PermissionError.
    """
    try:
        _make_folder(path, durable)
    except FileNotFoundError:
        make_private_folder(os.path.dirname(path), durable=durable)
        _make_folder(path, durable)  # once: in /proc, for one, this error does not mean that a folder is missing


def _make_folder(path: str, durable: bool) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not is_private_folder(path):
            raise PermissionError(errno.EPERM, "not a folder of ours, or others may write to it", path) from None
    else:
        os.chmod(path, 0o700)  # the umask may have taken bits away
        if durable:
            sync_folder(os.path.dirname(path))


def is_private_folder(path: str) -> bool:
    """Whether this is a folder (no link) of ours that nobody else may write to."""
    info = stat_path(path)
    return modes.S_ISDIR(info.st_mode) and _is_ours(info) and not info.st_mode & 0o022


# ---------------------------------------------------------------------------------------------- fork


def _before_fork() -> None:
    _mutex.acquire()


def _after_fork_in_parent() -> None:
    _mutex.release()


def _after_fork_in_child() -> None:
    """Close the parent's files: their locks must end with the parent, not with its last child."""
    global _mutex
    for descriptor in _descriptors:
        try:
            os.close(descriptor)
        except OSError:
            pass  # a descriptor that is closed already is what we want
    _descriptors.clear()
    _mutex = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
