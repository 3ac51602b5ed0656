# SPDX-License-Identifier: LGPL-2.1-or-later
"""The picture that virt-cgroup map draws: what it shows, and as text and SVG."""
