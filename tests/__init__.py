# SPDX-License-Identifier: Apache-2.0
"""The tests of microflow. ``python -m tests`` runs every check that the project has."""
