# SPDX-License-Identifier: Apache-2.0
"""Logs in a database: ``MICROFLOW_STORE=microflow.examples.sqlite_store:SqliteStore`` keeps runs in one SQLite file.

The five methods of a ``KeyStore`` are all there is. A primary key makes ``create`` one step; each call has a connection
of its own, so threads and forks need no thought.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import Any

from microflow.exceptions import StorageError
from microflow.key_stores import KeyStore


class SqliteStore(KeyStore):
    """Runs in the file ``runs.sqlite`` of a folder, for any number of processes of one machine."""

    def __init__(self, home: str) -> None:
        super().__init__(home)
        os.makedirs(home, mode=0o700, exist_ok=True)
        self._path = os.path.join(home, "runs.sqlite")
        self._run("CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")

    def _run(self, statement: str, *values: Any) -> tuple[int, list[Any]]:
        """The rows that were changed and those that were found; all of a statement happens, or nothing."""
        try:
            with closing(sqlite3.connect(self._path, timeout=60, isolation_level=None)) as connection:
                cursor = connection.execute(statement, values)
                return cursor.rowcount, cursor.fetchall()
        except sqlite3.Error as error:
            raise StorageError(f"{self._path}: {error}") from error

    def create(self, key: str, value: bytes) -> bool:
        """INSERT, which a primary key refuses the second time."""
        return self._run("INSERT OR IGNORE INTO entries VALUES (?, ?)", key, value)[0] == 1

    def put(self, key: str, value: bytes) -> None:
        """INSERT OR REPLACE."""
        self._run("INSERT OR REPLACE INTO entries VALUES (?, ?)", key, value)

    def get(self, key: str) -> bytes | None:
        """The one row."""
        return next((value for (value,) in self._run("SELECT value FROM entries WHERE key = ?", key)[1]), None)

    def scan(self, prefix: str, start: str = "") -> list[tuple[str, bytes]]:
        """A range of the primary key; no key holds a character that comes after "z"."""
        query = "SELECT key, value FROM entries WHERE key >= ? AND key < ? ORDER BY key"
        return self._run(query, max(prefix, start), prefix + "~")[1]

    def remove(self, key: str) -> bool:
        """DELETE."""
        return self._run("DELETE FROM entries WHERE key = ?", key)[0] == 1
