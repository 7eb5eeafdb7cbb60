# SPDX-License-Identifier: Apache-2.0
"""Flows to read and run, written as a user would write them: with the public names of microflow only."""
