# SPDX-License-Identifier: LGPL-2.1-or-later
"""What virt-cgroup recommend shows: what the host uses itself, and what it should keep."""
