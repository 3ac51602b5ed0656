"""A lab host that has the package, and no source tree."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from labhost.host import LabHost

TREE = Path(__file__).resolve().parents[2]
HOOKS = "/etc/libvirt/hooks"
CONF = "/etc/libvirt/cgroup-hooks.conf"
CPUS = "0-7"  # of a lab host
FENCED = "2-7"
XML = """\
<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>2</vcpu>
<os><type arch='x86_64'>hvm</type></os></domain>
"""


def package(tree: Path, revision: str) -> Path:
    """The .deb of TREE's last commit, built."""
    command = ["tools/package", "deb", revision]
    made = subprocess.run(command, cwd=tree, check=True, stdout=subprocess.PIPE, text=True)
    return tree / made.stdout.strip()


def packed(packages: Mapping[str, Path]) -> bytes:
    """A gzipped tar of PACKAGES, by their names in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, file in packages.items():
            tar.add(file, f"{name}.deb")
    return buffer.getvalue()


class Packaged(LabHost):
    def apt(self, *arguments: str) -> str:
        """With nobody to answer a question of dpkg's, which then fails."""
        return self.check(["apt-get", "-q", "-y", "--no-install-recommends", *arguments])

    def install(self, revision: str) -> str:
        """An edited configuration stays, as most administrators answer dpkg."""
        keep = "Dpkg::Options::=--force-confold"
        downgrade = "--allow-downgrades"
        return self.apt("install", "-o", keep, downgrade, f"/root/packages/{revision}.deb")

    def configure(self, layout: str) -> None:
        lines = (
            f'reserved_host_cpus = "0-1"\nreserved_host_mem = "1 GiB"\ncgroup_layout = "{layout}"\n'
        )
        self.check(f"cat >>{CONF} <<'END'\n{lines}END")

    def start(self, name: str, xml: str = XML) -> None:
        self.check(f"cat >/run/{name}.xml <<'END'\n{xml.format(name=name)}END")
        self.check(f"virsh -q create /run/{name}.xml")

    def pid(self, name: str) -> str:
        return self.check(f"cat /run/libvirt/qemu/{name}.pid").strip()

    def place(self, name: str) -> str:
        return self.check(f"cat /proc/{self.pid(name)}/cgroup").strip()

    def cpus(self, name: str) -> str:
        return self.check(
            f"sed -n 's/^Cpus_allowed_list:\\t//p' /proc/{self.pid(name)}/status"
        ).strip()

    def conforming(self) -> set[str]:
        """The VMs that are as configured."""
        domains = json.loads(self.check("virt-cgroup status --json"))["domains"]
        return {domain["name"] for domain in domains if domain["conforms"]}

    def hooks(self) -> list[str]:
        """What libvirt would run."""
        return self.check(f"cd {HOOKS}; find . -type f -perm -100 | sort").split()

    def ours(self) -> list[str]:
        """What there is of ours below /run, and of our telling systemd."""
        found = "find /run -path /run/credentials -prune -o -name '*libvirt-cgroup-hooks*' -print"
        return self.check(
            f"{found}; find /run/systemd/system.control -name '50-*.conf' 2>/dev/null || :"
        ).split()

    def daemon(self) -> str:
        return self.check("systemctl show -P MainPID libvirtd").strip()

    def property(self, name: str, unit: str = "vms.slice") -> str:
        return self.check(f"systemctl show -P {name} {unit}").strip()

    def log(self) -> str:
        return self.check("journalctl --no-pager -q -o cat -t libvirt-cgroup-hooks || :")
