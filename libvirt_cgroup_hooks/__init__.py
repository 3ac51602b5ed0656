__version__ = "0.1.0"
# SPDX-License-Identifier: LGPL-2.1-or-later
# Keep CPUs and memory for the host, and place VMs in cgroups, from a libvirt hook. hooks/qemu reads
# the version in the first line.
