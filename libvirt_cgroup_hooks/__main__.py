# SPDX-License-Identifier: LGPL-2.1-or-later
"""`virt-cgroup`, as `python3 -m libvirt_cgroup_hooks`."""

import sys

from .cli import main

sys.exit(main())
