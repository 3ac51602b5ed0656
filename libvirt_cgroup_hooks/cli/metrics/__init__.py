# SPDX-License-Identifier: LGPL-2.1-or-later
"""What virt-cgroup metrics tells Prometheus: the table of metrics, their values, and the text."""
