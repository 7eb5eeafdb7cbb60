# SPDX-License-Identifier: Apache-2.0
"""What happened to assets, read back from the notes in the logs. Who makes the notes: ``assets``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from .._waits import to_datetime
from ..exceptions import MicroflowException

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from .reading import Reader


class AssetEvent:
    """One thing that happened to an asset; compares by value.

    ``event`` is ``asset.referenced``, ``asset.materialization.succeeded`` or ``asset.materialization.failed``;
    ``related`` are the keys of the assets that this one was made from, ``metadata`` what the task added, in the form
    that people are shown, ``properties`` what was given of name, url, description and owners."""

    __slots__ = (
        "asset_key",
        "event",
        "flow_run_id",
        "materialized_by",
        "metadata",
        "occurred",
        "properties",
        "related",
        "task_run_id",
    )

    def __init__(self, note: dict[str, Any], flow_run_id: UUID | None) -> None:
        self.event = str(note.get("event"))
        self.asset_key = str(note.get("asset"))
        self.properties: dict[str, Any] = note.get("properties") or {}
        self.related: list[str] = note.get("related") or []
        self.materialized_by: str | None = note.get("by")
        self.metadata: dict[str, Any] = note.get("metadata") or {}
        self.occurred: datetime | None = to_datetime(note["at"])
        self.task_run_id = UUID(note["run"])
        #: None for a task run outside of flows
        self.flow_run_id = flow_run_id

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AssetEvent):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]  # it holds what can be changed

    def __repr__(self) -> str:
        return f"AssetEvent({self.event}, {self.asset_key!r})"


def read_asset_events(
    client: Reader,
    flow_run_id: UUID | str | None,
    task_run_id: UUID | str | None,
    asset_key: str | None,
) -> list[AssetEvent]:
    """The events that fit every filter given; see the method of the client."""
    wanted = None if task_run_id is None else UUID(str(task_run_id))
    found = (event for event in _of_runs(client, flow_run_id, wanted) if asset_key in (None, event.asset_key))
    return [event for event in found if wanted in (None, event.task_run_id)]


def _of_runs(client: Reader, flow_run_id: UUID | str | None, task_run_id: UUID | None) -> Iterator[AssetEvent]:
    if flow_run_id is None:
        for note in client.tasks.asset_notes(task_run_id):
            yield AssetEvent(note, None)
        if task_run_id is not None and client.tasks.find(task_run_id) is not None:
            return
    for run_id in client.store.list() if flow_run_id is None else [str(flow_run_id)]:
        try:
            run = client.fold(run_id)
        except MicroflowException:
            if flow_run_id is not None:
                raise
            continue  # one that cannot be read does not hide the others
        for note in run.asset_notes:
            yield AssetEvent(note, UUID(run_id))
