# SPDX-License-Identifier: Apache-2.0
"""A persisted result as an object and as bytes, and the ones that were used last.

The file of a result
====================

One line of JSON, a line feed, the payload as the serializer made it::

    {"microflow_result": 1, "metadata": {...}, "size": bytes of the payload, "digest": BLAKE2b of it, 16 bytes as hex}

``metadata`` is ``{"storage_key", "expiration" (ISO 8601 or null), "serializer": {"type", ...}, "microflow_version",
"storage_block_id"}``. With a metadata storage of its own, the line alone stands there and the payload alone in the
result storage, written first: metadata never names a payload that is not there.

What is read was perhaps written by others. The line is plain JSON; the payload is only looked at when size and digest
agree, and a pickle is only opened from a storage that is ``private`` to this user.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from datetime import datetime, timezone
from typing import Any, TypeVar

from ._digests import blake2b
from ._forks import new_lock
from ._state_parts import Value
from .exceptions import DamagedResult, SerializationError
from .serializers import Serializer, get_serializer, serializer_from_json, serializer_to_json
from .settings import current_settings

R = TypeVar("R")

FORMAT = 1
MOST_RESULTS = 1000
MOST_BYTES = 64 * 1024 * 1024


class ResultRecordMetadata:
    """What is known of a result without its value."""

    __slots__ = ("_digest", "_size", "expiration", "microflow_version", "serializer", "storage_block_id", "storage_key")

    def __init__(
        self,
        storage_key: str | None = None,
        expiration: datetime | None = None,
        serializer: Serializer | str | None = None,
        microflow_version: str | None = None,
        storage_block_id: object = None,
    ) -> None:
        self.storage_key = storage_key
        self.expiration = expiration
        self.serializer = get_serializer(current_settings().default_serializer if serializer is None else serializer)
        self.microflow_version = microflow_version or _version()
        self.storage_block_id = storage_block_id
        self._size: int | None = None  # of the payload, when it stands elsewhere
        self._digest: str | None = None

    @property
    def prefect_version(self) -> str:
        """The reference's name for the version that wrote the result."""
        return self.microflow_version

    def is_expired(self) -> bool:
        """Whether its time is over. Without an expiration that never happens."""
        return self.expiration is not None and _aware(self.expiration) <= datetime.now(timezone.utc)

    def dump_bytes(self) -> bytes:
        """One line of JSON; with size and digest of the payload when they are known."""
        metadata = {
            "storage_key": self.storage_key,
            "expiration": None if self.expiration is None else _aware(self.expiration).isoformat(),
            "serializer": serializer_to_json(self.serializer),
            "microflow_version": self.microflow_version,
            "storage_block_id": None if self.storage_block_id is None else str(self.storage_block_id),
        }
        head = {"microflow_result": FORMAT, "metadata": metadata, "size": self._size, "digest": self._digest}
        return json.dumps(head).encode("ascii")

    @classmethod
    def load_bytes(cls, data: bytes) -> ResultRecordMetadata:
        """What :meth:`dump_bytes` wrote. DamagedResult if it is anything else."""
        try:
            head = json.loads(data)
            if head["microflow_result"] != FORMAT:
                raise ValueError(f"its format is {head['microflow_result']!r}; a newer microflow may know it")
            given, expiration = head["metadata"], head["metadata"]["expiration"]
            metadata = cls(
                None if given["storage_key"] is None else str(given["storage_key"]),
                None if expiration is None else datetime.fromisoformat(expiration),
                serializer_from_json(given["serializer"]),
                str(given["microflow_version"]),
                given["storage_block_id"],
            )
            metadata._size, metadata._digest = head["size"], head["digest"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DamagedResult(f"it does not begin with the metadata of a result: {error}") from error
        return metadata

    def _seal(self, payload: bytes) -> None:
        self._size, self._digest = len(payload), _digest(payload)

    def _check(self, payload: bytes) -> None:
        if (self._size, self._digest) != (len(payload), _digest(payload)):
            raise DamagedResult(f"it holds {len(payload)} bytes that are not the {self._size} that were written")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResultRecordMetadata) and self._fields() == other._fields()

    __hash__ = None  # type: ignore[assignment]  # its fields can be changed

    def _fields(self) -> tuple[object, ...]:
        return (
            self.storage_key,
            self.expiration,
            self.serializer,
            self.microflow_version,
            self.storage_block_id,
        )

    def __repr__(self) -> str:
        return f"ResultRecordMetadata({self.storage_key!r}, expiration={self.expiration}, serializer={self.serializer})"


class ResultRecord(Value[R]):
    """A value with the metadata under which it is persisted, or could be. It is what a state carries as data."""

    __slots__ = ("is_persisted", "metadata")

    kept_whole = True

    def __init__(self, result: R, metadata: ResultRecordMetadata | None = None, is_persisted: bool = False) -> None:
        super().__init__(result)
        self.metadata = ResultRecordMetadata() if metadata is None else metadata
        self.is_persisted = is_persisted

    @property
    def expiration(self) -> datetime | None:
        """When its time is over."""
        return self.metadata.expiration

    @property
    def serializer(self) -> Serializer:
        """How the value is turned into bytes."""
        return self.metadata.serializer

    def serialize_result(self) -> bytes:
        """The value as bytes. SerializationError, naming type and serializer, if that cannot be done."""
        value = self.load()
        try:
            return self.serializer.dumps(value)
        except Exception as error:  # serializers run the user's code, which may raise anything
            raise SerializationError(
                f"a value of type {type(value).__name__!r} cannot be written by the serializer "
                f"{self.serializer.type!r}: {error}"
            ) from error

    def serialize_metadata(self) -> bytes:
        """The metadata as bytes."""
        return self.metadata.dump_bytes()

    def serialize(self) -> bytes:
        """Metadata and value as bytes."""
        payload = self.serialize_result()
        self.metadata._seal(payload)
        return self.metadata.dump_bytes() + b"\n" + payload

    @classmethod
    def deserialize(
        cls, data: bytes, backup_serializer: Serializer | None = None, *, trusted: bool = False
    ) -> ResultRecord[Any]:
        """The record that :meth:`serialize` wrote; bytes without metadata are read by `backup_serializer`.

        DamagedResult, or SerializationError: also for a pickle, unless nobody else can have written the data
        (`trusted`)."""
        head, _, payload = data.partition(b"\n")
        try:
            return cls.deserialize_from_result_and_metadata(payload, head, trusted=trusted)
        except DamagedResult:
            if backup_serializer is None:
                raise
        return cls(_loaded(backup_serializer, data, trusted), ResultRecordMetadata(serializer=backup_serializer))

    @classmethod
    def deserialize_from_result_and_metadata(
        cls, result: bytes, metadata: bytes, *, trusted: bool = False
    ) -> ResultRecord[Any]:
        """The record whose value and metadata were written apart. Errors as of :meth:`deserialize`."""
        known = ResultRecordMetadata.load_bytes(metadata)
        known._check(result)
        return cls(_loaded(known.serializer, result, trusted), known, is_persisted=True)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ResultRecord) and self.metadata != other.metadata:
            return False
        return super().__eq__(other)

    __hash__ = None

    def __repr__(self) -> str:
        return f"ResultRecord({self.load()!r}, {self.metadata!r})"


def _loaded(serializer: Serializer, payload: bytes, trusted: bool) -> Any:
    try:
        return serializer.loads(payload) if trusted else serializer.loads_untrusted(payload)
    except SerializationError:
        raise
    except Exception as error:  # serializers run the user's code, which may raise anything
        raise SerializationError(
            f"the serializer {serializer.type!r} cannot read it: {type(error).__name__}: {error}"
        ) from error


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def _digest(payload: bytes) -> str:
    return blake2b(payload, digest_size=16).hexdigest()


def _version() -> str:
    return str(sys.modules[__package__].__version__)  # of the package whose part this is: loaded already


# ------------------------------------------------------------------------------------------------- in memory


class ResultCache:
    """The results that were read last, as bytes: who gets one may change it. Shared by the stores that are
    derived from one another."""

    def __init__(self, most_results: int = MOST_RESULTS, most_bytes: int = MOST_BYTES) -> None:
        self.most_results = most_results
        self.most_bytes = most_bytes
        self._mutex = new_lock()  # guards the two below
        self._stored: OrderedDict[str, tuple[object, bytes, bytes]] = OrderedDict()
        self._bytes = 0

    def get(self, key: str, version: object) -> tuple[bytes, bytes] | None:
        """Metadata and payload under `key`, unless what is stored is another `version` by now."""
        with self._mutex:
            found = self._stored.get(key)
            if found is None or found[0] != version:
                return None
            self._stored.move_to_end(key)
            return found[1:]

    def put(self, key: str, version: object, metadata: bytes, payload: bytes) -> None:
        """Remember a result; those that were not asked for the longest are forgotten."""
        with self._mutex:
            self._bytes += len(payload) - len(self._stored.pop(key, (None, b"", b""))[2])
            self._stored[key] = version, metadata, payload
            while len(self._stored) > self.most_results or self._bytes > self.most_bytes:
                _, (_, _, oldest) = self._stored.popitem(last=False)
                self._bytes -= len(oldest)

    def __contains__(self, key: str) -> bool:
        return key in self._stored

    def __len__(self) -> int:
        return len(self._stored)
