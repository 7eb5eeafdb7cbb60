# SPDX-License-Identifier: Apache-2.0
"""One program for each peer, run by a Python that has the peer: prints one JSON object, benchmark name to figure.

What is measured has the name and the unit of the benchmark of ours that it stands beside."""
