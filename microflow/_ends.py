# SPDX-License-Identifier: Apache-2.0
"""The first and the last line of a log, for who only wants to know what the run is called and how it ended.

Goal: a listing of ten thousand runs must not read a million lines. The last line of a run that ended says how, and
what the run came to (``books``, see client/fold.py), so that it and the first one are enough.

What the two lines cannot show is whether those between them are in order. What is looked at is this: the first line
is the header of this run; the last one and the one before it have the right checksums; the last one names the one
before it; nothing follows it, not even a torn tail. If any of that does not hold, there is no answer, and the whole log
has to be read, with the reader's rule of ``log.py``.

Known holes: damage in the middle; a last line that is void or an orphan, of which only the lines before the last
two would tell. Who writes under the lock leaves neither.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

from ._chain import Chain
from ._ledger import records_of
from .log import Reading

if TYPE_CHECKING:
    from ._chain import Line

#: bytes that are read at either end; a log that is not longer is read as a whole. A line whose result or parameters
#: stand in it may be longer: 16 KiB are kept there
BLOCK = 4096

_START = re.compile(rb'\{"q":([0-9]{1,15}),"p":"([0-9a-f]{8})","e":([0-9]{1,15}),')


def read_ends(run_id: str, head: bytes, tail: bytes) -> Reading | None:
    """What the first line in `head` and the last one in `tail` say, if they are in order."""
    chain = Chain(run_id)
    lines = chain.feed(head[: head.find(b"\n") + 1])
    if lines:
        lines += _last_line(chain, tail)
    if len(lines) < 2 or lines[1].void:
        return None
    return Reading(chain, records_of(run_id, lines), None)


def _last_line(chain: Chain, tail: bytes) -> list[Line]:
    """Accept the last line, as if those between it and the first one had been."""
    *_, before, last, rest = (b"", b"", *tail.rsplit(b"\n", 3))
    start = _START.match(last)
    if rest or start is None or not _is_whole(before) or before[-10:-2] != start[2]:
        return []
    chain.leap(int(start[1]), start[2].decode(), int(start[3]))
    return chain.feed(last + b"\n")


def _is_whole(line: bytes) -> bool:
    return line[-16:] == b',"c":"%08x"}' % zlib.crc32(line[:-16])
