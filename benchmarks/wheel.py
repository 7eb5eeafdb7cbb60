# SPDX-License-Identifier: Apache-2.0
"""The size of the package as a wheel has it, deflated, beside its sources as they are."""

from __future__ import annotations

import io
import zipfile
from typing import Any

from . import ROOT, compare


def files() -> list[Any]:
    """What goes into the wheel."""
    package = [path for path in (ROOT / "microflow").rglob("*") if path.suffix in (".py", ".typed")]
    return [*package, ROOT / "LICENSE", ROOT / "README.md"]


def kilobytes_deflated() -> float:
    """As ``pip wheel`` packs it; the metadata are mostly the README."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in files():
            wheel.write(path, path.relative_to(ROOT))
    return len(packed.getvalue()) / 1024


def measure(smoke: bool) -> dict[str, Any]:
    """KiB."""
    return compare(
        kilobytes_deflated,
        lambda: sum(path.stat().st_size for path in files()) / 1024,
        what="the package as a wheel",
        beside="its sources",
        unit="KiB",
        smoke=smoke,
    )
