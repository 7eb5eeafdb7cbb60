# SPDX-License-Identifier: Apache-2.0
"""The in-process API over the state log: run objects, the fold that makes them, the client that appends."""
