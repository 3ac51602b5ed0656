"""What a lab host is made of: values only. The hash of a recipe names its image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .debian import DPKG_OPTIONS

AGENT = Path(__file__).with_name("agent.py")
AGENT_PATH = "/usr/local/lib/lab/agent.py"
FACTS_PATH = "/etc/libvirt-cgroup-hooks-lab.json"
ROOT_LABEL = "lab-root"
UNITS = "/etc/systemd/system"
ROOT_SIZE = "4G"

PACKAGES = (
    "systemd",
    "systemd-sysv",
    "systemd-container",
    "udev",
    "dbus",
    "kmod",
    "libvirt-daemon-system",
    "libvirt-clients",
    "qemu-system-x86",
    "python3",
    "python3-configobj",
    "python3-lxml",
    "python3-libvirt",
    "python3-pytest",
    "strace",
    "procps",
    "util-linux",
    "bpftool",
    "linux-image-cloud-amd64",
)

# With that capability libvirt asks QEMU for each feature of a VM's CPU by a message of its own, 460
# in all, which take half of a start here.
FEW_QUESTIONS = 'capability_filters = [ "cpu-unavailable-features" ]\n'

AGENT_UNIT = f"""\
[Unit]
Description=Remote control of the lab host

[Service]
ExecStart=/usr/bin/python3 -I {AGENT_PATH}
Restart=always
TimeoutStopSec=5

[Install]
WantedBy=multi-user.target
"""

GUEST_FILES: Mapping[str, str] = {
    AGENT_PATH: AGENT.read_text(encoding="utf-8"),
    f"{UNITS}/lab-agent.service": AGENT_UNIT,
    "/etc/fstab": f"LABEL={ROOT_LABEL} / ext4 defaults 0 1\n",
    "/etc/hostname": "lab\n",
    "/etc/hosts": "127.0.0.1 localhost lab\n",
    # A host with no machine id asks for its settings at first boot.
    "/etc/machine-id": "1ab000000000400080000000000000ab\n",
    # Without arguments of its own the daemon stays, where the packaged "--timeout 120" would end it
    # between two tests.
    "/etc/default/libvirtd": 'LIBVIRTD_ARGS=""\n',
    # The tests' VMs hold no system that could shut down: a reboot would wait five minutes for each.
    "/etc/default/libvirt-guests": "SHUTDOWN_TIMEOUT=5\n",
}

GUEST_LINKS: Mapping[str, str] = {
    f"{UNITS}/multi-user.target.wants/lab-agent.service": f"{UNITS}/lab-agent.service",
    # The clock jumps when a snapshot is restored: calendar timers would all go off in the middle of
    # a test.
    **{
        f"{UNITS}/{unit}": "/dev/null"
        for unit in (
            "apt-daily.timer",
            "apt-daily-upgrade.timer",
            "dpkg-db-backup.timer",
            "e2scrub_all.timer",
            "e2scrub_reap.service",
            "fstrim.timer",
            "logrotate.timer",
            "man-db.timer",
            "systemd-tmpfiles-clean.timer",
            "serial-getty@ttyS0.service",
            "serial-getty@hvc0.service",
            "getty@tty1.service",
        )
    },
}

SMOKE_DOMAIN = """\
<domain type='qemu'>
  <name>lab-smoke</name>
  <memory unit='MiB'>32</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64'>hvm</type></os>
</domain>
"""

# Also fills libvirt's cache of QEMU's capabilities, which takes the emulated host many seconds.
# Prints the VM's cgroup, and how daemon and VM are confined.
SMOKE_SCRIPT = f"""\
set -e
cat >/run/lab-smoke.xml <<'XML'
{SMOKE_DOMAIN}XML
virsh -q create /run/lab-smoke.xml
cat "/proc/$(pidof qemu-system-x86_64)/cgroup"
for name in libvirtd qemu-system-x86_64; do
    echo "$name: $(cat "/proc/$(pidof $name)/attr/current" 2>/dev/null || echo unconfined)"
done
virsh -q destroy lab-smoke
rm /run/lab-smoke.xml
sync
"""

NO_MACHINED_SCRIPT = """\
set -e
systemctl mask --now systemd-machined.service
rm -f /usr/share/dbus-1/system-services/org.freedesktop.machine1.service
systemctl reload dbus
systemctl restart libvirtd
"""

# The files of an image have no labels. Whatever ran before there were any has to be started anew.
SELINUX_SCRIPT = """\
set -e
fixfiles -F -f relabel >/var/log/lab-relabel.log 2>&1
systemctl daemon-reexec
systemctl restart dbus libvirtd
"""

OPENRC_CONF = """\
rc_cgroup_mode="unified"
rc_parallel="NO"
rc_logger="NO"
"""

OPENRC_AGENT = f"""\
#!/sbin/openrc-run
description="Remote control of the lab host"
supervisor=supervise-daemon
command=/usr/bin/python3
command_args="-I {AGENT_PATH}"
"""


@dataclass(frozen=True)
class Release:
    """One Debian release as a lab host, with what confines VMs there as it is shipped."""

    codename: str
    cgroup: str
    kernel_arguments: tuple[str, ...] = ()
    apt_options: tuple[str, ...] = ()
    packages: tuple[str, ...] = ("apparmor", "apparmor-utils")
    security_driver: str = "apparmor"


@dataclass(frozen=True)
class Variant:
    """Another kind of host of a release.

    `script` runs on the booted host before its snapshot. Where `packages` are given, or `files`, it
    has a root file system of its own, and none of the packages that it is `without`.
    """

    manager: str
    script: str = ""
    kernel_arguments: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    security_driver: str = ""


RELEASES: Mapping[str, Release] = {
    "11": Release(
        "bullseye",
        "v1",
        ("systemd.unified_cgroup_hierarchy=0",),
        packages=(),
        security_driver="none",
    ),
    "12": Release("bookworm", "v2"),
    "13": Release("trixie", "v2"),
    # Debian sid. A mirror that is not brought up to date for a week has lists that have expired.
    "newest": Release("sid", "v2", apt_options=('Acquire::Check-Valid-Until "false"',)),
}

VARIANTS: Mapping[str, Variant] = {
    "": Variant("systemd"),
    "no-machined": Variant("cgroupfs", NO_MACHINED_SCRIPT),
    "openrc": Variant(
        "cgroupfs",
        kernel_arguments=("init=/sbin/openrc-init",),
        packages=(
            "openrc",
            "sysvinit-core",
            "initscripts",
            "elogind",
            "libvirt-daemon-system-sysv",
        ),
        without=("systemd", "systemd-sysv", "systemd-container"),
        files={
            # The root is mounted read-write by then, which fsck refuses.
            "/etc/fstab": f"LABEL={ROOT_LABEL} / ext4 defaults 0 0\n",
            "/etc/rc.conf": OPENRC_CONF,
            "/etc/init.d/lab-agent": OPENRC_AGENT,
        },
        links={"/etc/runlevels/default/lab-agent": "/etc/init.d/lab-agent"},
    ),
    "selinux": Variant(
        "systemd",
        SELINUX_SCRIPT,
        kernel_arguments=("security=selinux", "selinux=1", "enforcing=0"),
        packages=(
            "selinux-basics",
            "selinux-policy-default",
            "auditd",
            "checkpolicy",
            "semodule-utils",
        ),
        security_driver="selinux",
    ),
    "podman": Variant("systemd", packages=("podman", "crun", "netavark", "busybox-static")),
    "oomd": Variant("systemd", packages=("systemd-oomd",)),
    # The second half of the memory has no CPU: those of its node are not brought in.
    "memory-node": Variant("systemd", kernel_arguments=("nr_cpus=4",)),
}


def digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Recipe:
    """All that decides what a lab host is.

    `qemu` is QEMU's version and machine: only the same can load the snapshot.
    """

    release_name: str
    variant_name: str
    qemu: tuple[str, ...] = field(default=())

    @property
    def release(self) -> Release:
        return RELEASES[self.release_name]

    @property
    def variant(self) -> Variant:
        return VARIANTS[self.variant_name]

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.release_name, self.variant_name)))

    @property
    def kernel_arguments(self) -> tuple[str, ...]:
        return (*self.release.kernel_arguments, *self.variant.kernel_arguments)

    @property
    def packages(self) -> tuple[str, ...]:
        wanted = (*PACKAGES, *self.release.packages, *self.variant.packages)
        return tuple(name for name in wanted if name not in self.variant.without)

    @property
    def security_driver(self) -> str:
        return self.variant.security_driver or self.release.security_driver

    @property
    def guest_files(self) -> dict[str, str]:
        driver = f'security_driver = "{self.security_driver}"\n{FEW_QUESTIONS}'
        return {**GUEST_FILES, "/etc/libvirt/qemu.conf": driver, **self.variant.files}

    @property
    def guest_links(self) -> dict[str, str]:
        return {**GUEST_LINKS, **self.variant.links}

    @property
    def root_key(self) -> str:
        """Name and hash of the root file system, which variants share that change nothing in it."""
        own = self.variant.packages or self.variant.files
        values = [
            self.release.codename,
            self.release.apt_options,
            self.packages,
            DPKG_OPTIONS,
            self.guest_files,
            self.guest_links,
            ROOT_SIZE,
        ]
        return f"root-{self.name if own else self.release_name}-{digest(values)}"

    @property
    def host_key(self) -> str:
        """Name and hash of the booted host."""
        values = [
            self.root_key,
            asdict(self.release),
            asdict(self.variant),
            self.qemu,
            SMOKE_SCRIPT,
            self.facts,
        ]
        return f"host-{self.name}-{digest(values)}"

    @property
    def facts(self) -> dict[str, str]:
        """What the host is told about itself, in FACTS_PATH."""
        return {
            "release": self.release_name,
            "variant": self.variant_name,
            "cgroup": self.release.cgroup,
            "manager": self.variant.manager,
            "security": self.security_driver,
        }
