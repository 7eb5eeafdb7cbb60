# SPDX-License-Identifier: Apache-2.0
"""What is built on microflow's public names; the engine never imports it."""
