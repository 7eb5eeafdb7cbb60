# SPDX-License-Identifier: Apache-2.0
"""BLAKE2b, without the millisecond that ``hashlib`` takes to load OpenSSL (2 of 24 ms of importing microflow)."""

from __future__ import annotations

try:
    from _blake2 import blake2b
except ImportError:  # an interpreter that was built without its own BLAKE2
    from hashlib import blake2b

__all__ = ["blake2b"]
