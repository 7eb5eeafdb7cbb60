# SPDX-License-Identifier: Apache-2.0
"""Lines and the reader's rule: the pure half of the state log, functions of bytes and of nothing else.

The grammar and the rule stand in words at the head of ``log.py``; read them first. :func:`encode_line` and
:func:`parse_line` are the grammar, :class:`Chain` is the rule. No file, no clock and no lock is touched here.
"""

from __future__ import annotations

import re
import zlib
from array import array
from typing import TYPE_CHECKING, Any

from . import _strict_json
from .exceptions import RecordTooLarge, SerializationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    Body = dict[str, Any]

FORMAT = "microflow"
FORMAT_VERSION = 1
KINDS = frozenset({"run", "claim", "release", "state", "task", "rename", "input", "note"})
_OF_ONE_OWNER = KINDS - {"run", "claim", "release"}  # what an owner writes between its claim and its release
MAXIMUM_LINE = 1 << 20  # bytes, with the LF

CLEAN, TORN, SUSPECT, CORRUPT = "CLEAN", "TORN", "SUSPECT", "CORRUPT"

_VOID, _OWN = 1, 2  # the flags of an accepted line: it changed nothing; it was written here


# --------------------------------------------------------------------------------- the bytes of a line


def encode_line(position: int, previous: str, epoch: int | None, time_us: int, bodies: Sequence[Body]) -> bytes:
    """One whole line with its LF; `previous` is the checksum of the line before. RecordTooLarge above 1 MiB."""
    return join(position, previous, epoch, time_us, encode_bodies(bodies))


def encode_bodies(bodies: Sequence[Body]) -> str:
    """The member ``b``. Whatever is not refused here, every reader must be able to accept."""
    if not bodies:
        raise ValueError("a line needs at least one record")
    for body in bodies:
        kind = body.get("k")
        if kind not in KINDS and not (isinstance(kind, str) and body.get("o") == 1):
            raise ValueError(f"{kind!r} is no kind of record of format version {FORMAT_VERSION}: {body!r}")
    try:
        text = _strict_json.encode(bodies, depth=_strict_json.MAXIMUM_DEPTH - 1)  # the line is a level as well
    except (TypeError, ValueError, RecursionError) as error:  # the last: little stack was left
        kinds = ", ".join(body["k"] for body in bodies)
        raise SerializationError(f"a record ({kinds}) cannot be written as JSON: {error}") from error
    return _hide_ends(text) if ',"c":"' in text else text


def _hide_ends(text: str) -> str:
    """Only the end of a line may look like the end of a line: or a cut-off one could end like a whole one."""
    return text.replace(',"c":"', ',"\\u0063":"')


def join(position: int, previous: str, epoch: int | None, time_us: int, text: str) -> bytes:
    claim_number = "" if epoch is None else f'"e":{epoch},'
    line = f'{{"q":{position},"p":"{previous}",{claim_number}"t":{time_us},"b":{text}'.encode("ascii")
    if len(line) + 17 > MAXIMUM_LINE:
        raise RecordTooLarge(
            f"the records of one transition take {len(line) + 17} bytes, a line at most {MAXIMUM_LINE}: "
            f"keep large values as results, in files of their own"
        )
    return b'%b,"c":"%08x"}\n' % (line, zlib.crc32(line))


def parse_line(line: bytes) -> tuple[int, Body] | None:
    """The checksum and the members of a line (without its LF); None if it is no record-line."""
    checksum = zlib.crc32(line[:-16])
    if line[-16:] != b',"c":"%08x"}' % checksum or len(line) >= MAXIMUM_LINE:
        return None
    try:
        members = _strict_json.decode(line.decode("ascii"))
    except ValueError:
        return None
    return (checksum, members) if _is_sound(members) else None


def _is_sound(members: Any) -> bool:
    get = members.get if type(members) is dict else {}.get
    if type(get("q")) is not int or type(get("p")) is not str or type(get("t")) is not int:
        return False
    bodies = get("b")
    if type(bodies) is not list or not bodies or type(get("e", 0)) is not int:
        return False
    for body in bodies:  # noqa: SIM110 - a third of the price of all(... for ...), once per line of a log
        if type(body) is not dict or type(body.get("k")) is not str:
            return False
    return True


_WHOLE_END = re.compile(rb',"c":"[0-9a-f]{8}"\}\Z')


def _ends_whole(line: bytes) -> bool:
    """Whether a dead line ends as only whole lines do: then it was damaged after it had been written."""
    return _WHOLE_END.search(line, max(0, len(line) - 16)) is not None


class Line:
    """An accepted line. ``offset`` is the byte where it starts, ``void`` says that it changed nothing."""

    __slots__ = ("bodies", "epoch", "offset", "own", "position", "time", "void")

    def __init__(
        self, position: int, offset: int, epoch: int | None, time: int, bodies: Sequence[Body], flags: int
    ) -> None:
        self.position = position
        self.offset = offset
        self.epoch = epoch
        self.time = time
        self.bodies = bodies
        self.void = bool(flags & _VOID)
        self.own = bool(flags & _OWN)


# --------------------------------------------------------------------------------- the reader's rule


class Chain:
    """The reader's rule: a function of the bytes of one log and of nothing else, fed piece by piece."""

    __slots__ = (
        "_beyond", "_gap", "_lost", "_overlong", "_rotten", "_suspect", "checksum", "checksums", "dead",
        "duplicates", "epoch", "flags", "lines", "next_position", "offset", "offsets", "orphans", "owner",
        "owner_host", "owner_pid", "run_id", "sound_end", "tail", "too_new", "voids", "writer",
    )  # fmt: skip

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.next_position = 0
        self.checksum = f"{zlib.crc32(run_id.encode()):08x}"  # of the last accepted line
        self.epoch = 0
        self.owner: str | None = None
        self.owner_pid: int | None = None
        self.owner_host: str | None = None
        self.offset = 0  # the byte after the last LF: where reading goes on
        self.sound_end = -1  # the byte after the last line that was written here, onto a sound log
        self.tail = 0  # bytes after `offset`, without LF
        self.lines = 0
        self.dead = self.orphans = self.voids = self.duplicates = 0
        self.writer = FORMAT_VERSION
        self.too_new: str | None = None  # the reason; once it is set nothing more is accepted
        # for each accepted line: where it starts, its checksum, its flags
        self.offsets = array("Q")
        self.checksums = array("I")
        self.flags = bytearray()
        self._lost: set[str] = set()  # the checksums of orphans
        self._overlong = False  # in the middle of a line of more than 1 MiB
        # (line, byte, reason) of the first dead line since the last accepted one; of the first of them that
        # ends like a whole line; of the first line beyond a gap
        self._suspect: tuple[int, int, str] | None = None
        self._rotten: tuple[int, int, str] | None = None
        self._gap: tuple[int, int, str] | None = None
        self._beyond = -1  # the highest number seen beyond a gap

    def feed(self, data: bytes) -> list[Line]:
        """Take the lines in `data`, which starts at byte ``offset``; gives those that were accepted.

        What follows the last LF is not taken: hand it over again, with what comes after it. (A writer
        may take back what stands there, so nobody may remember it.)
        """
        accepted: list[Line] = []
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            line = self._take(data[start:end])
            if line is not None:
                accepted.append(line)
            self._overlong = False
            self.lines += 1
            self.offset += end + 1 - start
            start = end + 1
        self.tail = len(data) - start
        if self.tail >= MAXIMUM_LINE:  # no line of ours: not worth keeping in memory until its LF comes
            self._overlong = True
            self.offset += self.tail
            self.tail = 0
        return accepted

    @property
    def is_torn(self) -> bool:
        """Whether the log, as far as it was fed, ends without LF."""
        return bool(self.tail) or self._overlong

    def _take(self, line: bytes) -> Line | None:
        if self.too_new:
            return None
        parsed = None if self._overlong else parse_line(line)
        if parsed is None:
            self._bury(line)
            return None
        checksum, members = parsed
        position, previous, epoch, bodies = members["q"], members["p"], members.get("e"), members["b"]
        if previous in self._lost:
            self._orphan(checksum)
        elif self._continues(position, previous):
            if position == 0 and (not self.is_header(bodies[0]) or self.is_void(epoch, bodies)):
                self._bury(line)
            else:
                return self._accept(checksum, epoch, members["t"], bodies)
        elif 0 <= position < self.next_position and self.checksums[position] == checksum:
            self.duplicates += 1
        elif position <= self.next_position:
            self._orphan(checksum)
        else:
            self._miss(position)
        return None

    def _bury(self, line: bytes) -> None:
        self.dead += 1
        place = (self.lines + 1, self.offset, "this is no valid line")
        self._suspect = self._suspect or place
        if _ends_whole(line) and not self._overlong:
            self._rotten = self._rotten or place

    def _orphan(self, checksum: int) -> None:
        self.orphans += 1
        self._lost.add(f"{checksum:08x}")

    def _miss(self, position: int) -> None:
        self._beyond = max(self._beyond, position)
        if self._gap is None:
            reason = f"position {position} stands where {self.next_position} should"
            self._gap = self._rotten or self._suspect or (self.lines + 1, self.offset, reason)

    def _continues(self, position: int, previous: str) -> bool:
        return position == self.next_position and previous == self.checksum

    def is_header(self, body: Body) -> bool:
        """Whether this record may begin the log of this run."""
        versions = (type(body.get("reader")), type(body.get("writer")))
        return (body.get("k"), body.get("format"), body.get("id"), *versions) == ("run", FORMAT, self.run_id, int, int)

    def _accept(self, checksum: int, epoch: int | None, time: int, bodies: Sequence[Body]) -> Line | None:
        flags = 0
        is_ordinary = self.next_position and epoch == self.epoch
        for body in bodies:
            if body["k"] not in _OF_ONE_OWNER:
                is_ordinary = False
        if is_ordinary:
            pass  # nearly every line, of which nothing is to be asked; to ask all the same takes a twentieth of it
        elif self.is_void(epoch, bodies):
            flags = _VOID
            self.voids += 1
        else:
            self.too_new = self._beyond_our_version(bodies)
            if self.too_new:
                return None
            if epoch is not None:
                self._change_owner(epoch, bodies)
        line = Line(self.next_position, self.offset, epoch, time, bodies, flags)
        self._extend(checksum, f"{checksum:08x}", flags)
        return line

    def _extend(self, checksum: int, text: str, flags: int) -> None:
        self.offsets.append(self.offset)
        self.checksums.append(checksum)
        self.flags.append(flags)
        if self._beyond <= self.next_position:
            self._gap = None
        self.next_position += 1
        self.checksum = text
        self._suspect = self._rotten = None

    def accept_own(self, line: bytes, epoch: int | None, bodies: Sequence[Body]) -> None:
        """Account for a line that was just written at ``offset``, and is not void, without parsing it."""
        if epoch is not None:
            self._change_owner(epoch, bodies)
        checksum = line[-11:-3].decode()
        self._extend(int(checksum, 16), checksum, _OWN)
        self.sound_end = self.offset = self.offset + len(line)
        self.lines += 1

    def leap(self, position: int, checksum: str, epoch: int) -> None:
        """Expect line `position` next, as if all lines before it had been fed. What is asked of older lines than that
        has no answer any more."""
        self.next_position, self.checksum, self.epoch = position, checksum, epoch

    def known_line(self, position: int, line: bytes) -> Line | None:
        """The accepted line `position` once more, from its bytes; None if they are no longer the same."""
        parsed = parse_line(line)
        if parsed is None or parsed[0] != self.checksums[position]:
            return None
        members = parsed[1]
        flags = self.flags[position]
        return Line(position, self.offsets[position], members.get("e"), members["t"], members["b"], flags)

    def claim_in(self, bodies: Sequence[Body]) -> Body | None:
        """The claim record, if these bodies make a claim line at the next position."""
        index = 0 if self.next_position else 1
        return bodies[index] if len(bodies) > index and bodies[index]["k"] == "claim" else None

    def is_void(self, epoch: int | None, bodies: Sequence[Body]) -> bool:
        """Whether a line at the next position would change nothing, because of its claim number."""
        if self.claim_in(bodies) is not None:
            return epoch != self.epoch + 1
        return epoch is not None and epoch != self.epoch

    def _change_owner(self, epoch: int, bodies: Sequence[Body]) -> None:
        if self.epoch != epoch and (claim := self.claim_in(bodies)) is not None:
            self.epoch = epoch
            self.owner, self.owner_pid, self.owner_host = claim.get("owner"), claim.get("pid"), claim.get("host")
        for body in bodies:
            if body["k"] == "release":
                self.owner = self.owner_pid = self.owner_host = None

    def _beyond_our_version(self, bodies: Sequence[Body]) -> str | None:
        if not self.next_position:
            self.writer = bodies[0]["writer"]
            if bodies[0]["reader"] > FORMAT_VERSION:
                return f"reading it needs format version {bodies[0]['reader']}"
        for body in bodies:
            if body["k"] not in KINDS and body.get("o") != 1:
                return f"line {self.lines + 1} holds a record of the kind {body['k']!r}"
        return None

    @property
    def damage(self) -> tuple[int, int, str] | None:
        """Where acknowledged lines are damaged or missing: line (from 1), byte, reason. None if nowhere."""
        return self._gap or self._rotten

    @property
    def status(self) -> str:
        """CLEAN, TORN, SUSPECT or CORRUPT; the grammar says what they mean."""
        if self.damage:
            return CORRUPT
        if self._suspect:
            return SUSPECT
        return TORN if self.is_torn else CLEAN
