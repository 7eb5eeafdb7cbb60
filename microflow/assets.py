# SPDX-License-Identifier: Apache-2.0
"""Assets and the tasks that make them: ``@materialize``. What is noted of them, and when, is said in ``_assets``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from ._arguments import NotSet
from ._assets import Asset, AssetContext, AssetProperties, add_asset_metadata
from .tasks import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Unpack

    from ._task_options import TaskOptions

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

__all__ = [
    "Asset", "AssetContext", "AssetProperties", "MaterializingTask", "add_asset_metadata", "materialize",
]  # fmt: skip


class MaterializingTask(Task[P, R_co]):
    """A task whose runs make `assets`, by the tool `materialized_by` if not by themselves; see :func:`materialize`."""

    def __init__(
        self,
        fn: Callable[P, R_co],
        *,
        assets: Iterable[Any] = (),
        materialized_by: str | None = None,
        **options: Unpack[TaskOptions],
    ) -> None:
        super().__init__(fn, **options)
        self._set_assets(assets, materialized_by)

    def _set_assets(self, assets: Iterable[Any], materialized_by: str | None) -> None:
        self.assets = [Asset(each) if isinstance(each, str) else each for each in assets]
        self.materialized_by = materialized_by
        self._given = {**self._given, "assets": self.assets, "materialized_by": materialized_by}

    def with_options(
        self, assets: Iterable[Any] | None = None, materialized_by: Any = NotSet, **options: Unpack[TaskOptions]
    ) -> MaterializingTask[P, R_co]:
        """As of a plain task; no `assets`, and a `materialized_by` that is not given, keep the old ones."""
        twin = cast("MaterializingTask[P, R_co]", super().with_options(**options))
        by = self.materialized_by if materialized_by is NotSet else materialized_by
        twin._set_assets([*(assets or ())] or self.assets, by)
        return twin


def materialize(
    *assets: Any, by: str | None = None, **options: Unpack[TaskOptions]
) -> Callable[[Callable[P, R]], MaterializingTask[P, R]]:
    """``@materialize("s3://bucket/table", by="dbt")``: a task whose runs make these assets, with the options of a task.

    How each run ends is noted of each asset, with the metadata that was added to it. TypeError without an asset."""
    if not assets:
        raise TypeError("`@materialize` needs at least one asset: a key such as 's3://bucket/table', or an Asset")
    return lambda fn: MaterializingTask(fn, assets=assets, materialized_by=by, **options)
