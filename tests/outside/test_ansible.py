"""The Ansible role on two hosts at once, which real Ansible reaches by ssh; and a real Prometheus
that scrapes both.

The 13 gets the package as a file, newest from a repository.
"""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest

from labhost.image import build, recipe
from labhost.recipe import RELEASES

from . import debian
from .packaged import CONF, TREE, Packaged

PROGRAMS = Path(sys.executable).parent  # pip installs beside it
COLLECTION = TREE / "packaging/ansible"
ROLE = "libvirt_cgroup_hooks.host.cgroup_hooks"
HOSTS = ("13", "newest")
PROGRAM = "/usr/bin/virt-cgroup"
CACHE = "/var/cache/libvirt-cgroup-hooks"
METRICS = "/var/lib/prometheus/node-exporter"
LIBRARIES = "usr/lib/x86_64-linux-gnu/lib*.so*"
SSH, EXPORTER = 22, 9100
PLAY_TIMEOUT = 3600.0  # of a busy machine; a minute or two on an idle one
SET_UP = f"""\
set -e
mkdir -p -m 700 /root/.ssh /etc/dropbear {METRICS}
install -m 600 /root/tools/key.pub /root/.ssh/authorized_keys
echo 'deb [trusted=yes] file:/root/repository ./' >/etc/apt/sources.list
systemd-run -q -E LD_LIBRARY_PATH=/root/tools /root/tools/dropbear -F -E -R -s -p {SSH}
systemd-run -q /root/tools/prometheus-node-exporter --collector.disable-defaults \\
    --collector.textfile --collector.textfile.directory={METRICS}
"""


class Tools(NamedTuple):
    """What hosts of the lab lack, and this machine."""

    deb: Path
    folder: Path  # for /root/tools of a host
    repositories: Path  # by host
    prometheus: Path


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    folder = tmp_path_factory.mktemp("tools")
    made = subprocess.run(
        ["tools/package", "deb"], cwd=TREE, check=True, stdout=subprocess.PIPE, text=True
    )
    built = TREE / made.stdout.strip()
    deb = folder / built.name  # another test may build it again meanwhile
    deb.write_bytes(built.read_bytes())
    packages = folder / "packages"
    packages.mkdir()
    ssh = ("dropbear-bin", "libtomcrypt1", "libtommath1")
    debian.download(packages, *ssh, "prometheus", "prometheus-node-exporter")
    debian.unpack(packages)
    of_hosts = folder / "of_hosts"
    of_hosts.mkdir()
    programs = ("usr/sbin/dropbear", "usr/bin/prometheus-node-exporter")
    for file in [packages / name for name in programs] + list(packages.glob(LIBRARIES)):
        (of_hosts / file.name).write_bytes(file.read_bytes())
        (of_hosts / file.name).chmod(0o755)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True
    )
    (folder / "key.pub").rename(of_hosts / "key.pub")
    for name in HOSTS:
        repository = folder / "repositories" / name
        repository.mkdir(parents=True)
        # for Ansible's apt module
        needed = ("python3-apt", "python-apt-common", "distro-info-data")
        debian.download(repository, *needed, codename=RELEASES[name].codename)
        if name != "13":
            (repository / deb.name).write_bytes(deb.read_bytes())
        debian.index(repository)
    return Tools(deb, of_hosts, folder / "repositories", packages / "usr/bin/prometheus")


def packed(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for path in folder.iterdir():
            if path.is_file():
                tar.add(path, path.name)
    return buffer.getvalue()


class Run(NamedTuple):
    """Of a playbook: what it prints, and by host how many tasks changed something, and failed."""

    text: str
    changed: dict[str, int]
    failed: dict[str, int]

    @property
    def steps(self) -> set[str]:
        """Of virt-cgroup, as the role tells them."""
        return set(re.findall(r'"(systemctl [^"]*)"', self.text))

    def task(self, name: str) -> str:
        """What the task NAME prints."""
        return self.text.partition(f" : {name}]")[2].partition("\nTASK [")[0]


class Site:
    """The hosts and what is said to Ansible of them. `settings` are variables of all hosts."""

    def __init__(self, folder: Path, tools: Tools) -> None:
        self.folder = folder
        self.tools = tools
        self.hosts: dict[str, Packaged] = {}
        self.ports: dict[str, dict[int, int]] = {}
        self.settings: dict[str, object] = {}
        self._install_collection()

    def _install_collection(self) -> None:
        self._run("ansible-galaxy", "collection", "build", COLLECTION)
        (archive,) = self.folder.glob("*.tar.gz")
        arguments = ("collection", "install", "--offline", "-p", self.folder, archive)
        self._run("ansible-galaxy", *arguments)

    def add(self, name: str, host: Packaged) -> None:
        self.hosts[name] = host
        self.ports[name] = host.forward(SSH, EXPORTER)
        host.push(packed(self.tools.folder), "/root/tools")
        host.push(packed(self.tools.repositories / name), "/root/repository")
        host.check(SET_UP)

    def play(self, *arguments: str, serial: int = 0) -> Run:
        """Has the role in effect on all hosts, of which SERIAL at a time."""
        self._write_inventory()
        head = {"hosts": "all", "gather_facts": False, "serial": serial or len(self.hosts)}
        (self.folder / "play.json").write_text(json.dumps([{**head, "roles": [ROLE]}]))
        done = self._run(
            "ansible-playbook", "-i", "hosts.json", "play.json", *arguments, check=False
        )
        recap = re.findall(r"^(\w+) +: .*?changed=(\d+).*?failed=(\d+)", done, re.MULTILINE)
        changed = {name: int(number) for name, number, _ in recap}
        failed = {name: int(number) for name, _, number in recap}
        assert set(changed) == set(self.hosts), done
        return Run(done, changed, failed)

    def _write_inventory(self) -> None:
        hosts: dict[str, dict[str, object]] = {
            name: {"ansible_port": ports[SSH]} for name, ports in self.ports.items()
        }
        hosts["13"]["cgroup_hooks_package_files"] = [str(self.tools.deb)]
        common: dict[str, object] = {
            "ansible_host": "127.0.0.1",
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.tools.folder.with_name("key")),
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        common.update({f"cgroup_hooks_{key}": value for key, value in self.settings.items()})
        inventory = {"all": {"hosts": hosts, "vars": common}}
        (self.folder / "hosts.json").write_text(json.dumps(inventory))

    def _run(self, program: str, *arguments: str | Path, check: bool = True) -> str:
        environment = {
            "PATH": f"{PROGRAMS}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_COLLECTIONS_PATH": str(self.folder),
            "ANSIBLE_TIMEOUT": "300",
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_SSH_TRANSFER_METHOD": "piped",
            "ANSIBLE_HOST_KEY_CHECKING": "0",
            "ANSIBLE_SSH_ARGS": "-F none -o ControlMaster=auto -o ControlPersist=60s "
            "-o UserKnownHostsFile=/dev/null",
        }
        done = subprocess.run(
            [PROGRAMS / program, *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PLAY_TIMEOUT,
        )
        print(done.stdout)
        assert not check or done.returncode == 0, done.stdout
        return done.stdout

    # what is on the hosts

    def each(self, command: str) -> list[str]:
        """What COMMAND prints on each host."""
        return [host.check(command).strip() for host in self.hosts.values()]

    def cpus(self, name: str) -> list[str]:
        """Of the VM NAME on each host."""
        return [host.cpus(name) for host in self.hosts.values()]

    def pids(self, name: str) -> list[str]:
        return [host.pid(name) for host in self.hosts.values()]

    def start(self, name: str) -> None:
        for host in self.hosts.values():
            host.start(name)

    def limits(self) -> list[int]:
        """The memory of all VMs."""
        return [int(limit) for limit in self.each("cat /sys/fs/cgroup/machine.slice/memory.max")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tools: Tools) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("ansible"), tools)
    with ExitStack() as running:
        for name in HOSTS:
            host = Packaged(build(recipe(name, "")))
            running.enter_context(host)
            made.add(name, host)
        # Ansible installs it where it is missing, but not in check mode.
        made.hosts["newest"].apt("update")
        made.hosts["newest"].apt("install", "python3-apt")
        yield made


NOTHING = dict.fromkeys(HOSTS, 0)
RESERVED: dict[str, object] = {"reserved_host_cpus": "0-1", "reserved_host_mem": "1 GiB"}
MORE: dict[str, object] = {"reserved_host_cpus": "0-2", "reserved_host_mem": "1280 MiB"}
OURS = f"ls -d {PROGRAM} {CONF} {CACHE} 2>/dev/null || :"


def test_from_nothing_to_fenced_vms(site: Site) -> None:
    site.settings = RESERVED
    run = site.play("--check", "--diff")
    assert run.failed == NOTHING
    assert min(run.changed.values()) > 0
    assert '+reserved_host_cpus = "0-1"' in run.task("Write the configuration")
    assert site.each(OURS) == ["", ""]

    run = site.play()
    assert run.failed == NOTHING
    assert min(run.changed.values()) > 0
    assert site.each("systemctl is-enabled libvirt-cgroup-hooks") == ["enabled"] * 2
    timer = "systemctl is-active libvirt-cgroup-hooks-metrics.timer || :"
    assert site.each(timer) == ["inactive"] * 2
    site.start("web")
    assert site.cpus("web") == ["2-7"] * 2
    assert max(site.limits()) < 2 << 30
    assert site.each("virt-cgroup validate -q | grep FAIL || :") == ["", ""]

    run = site.play("--diff")
    assert (run.failed, run.changed) == (NOTHING, NOTHING)


def test_another_reservation_while_vms_run(site: Site) -> None:
    pids, limits, written = site.pids("web"), site.limits(), site.each(f"cat {CONF}")
    site.settings = MORE
    foretold = site.play("--check", "--diff")
    assert foretold.failed == NOTHING
    assert site.each(f"cat {CONF}") == written
    assert (site.cpus("web"), site.limits()) == (["2-7"] * 2, limits)

    run = site.play("--diff", serial=1)
    assert run.failed == NOTHING
    assert run.steps == foretold.steps
    assert any("AllowedCPUs=3-7" in step for step in run.steps)
    for text in (foretold.text, run.text):
        assert '\n-reserved_host_cpus = "0-1"' in text
        assert '\n+reserved_host_cpus = "0-2"' in text
    assert site.cpus("web") == ["3-7"] * 2
    assert [before - after for before, after in zip(limits, site.limits())] == [256 << 20] * 2
    assert site.pids("web") == pids


@pytest.mark.parametrize(
    ("variables", "arguments", "told"),
    [
        ({"on_error": "ask"}, (), "value of cgroup_hooks_on_error must be one of: refuse, warn"),
        ({"reserved_cpus": "0"}, (), "There is no variable cgroup_hooks_reserved_cpus; there are"),
        ({"reserved_host_cpus": "0-99"}, (), "this host has no CPUs 8-99: its CPUs are 0-7"),
        ({"reserved_host_mem": "9 TiB"}, ("--check",), "leaves no memory for VMs"),
    ],
)
def test_a_wrong_variable_changes_nothing(
    site: Site, variables: dict[str, object], arguments: tuple[str, ...], told: str
) -> None:
    before = site.each(f"cat {CONF}"), site.cpus("web"), site.limits()
    site.settings = {**MORE, **variables}
    run = site.play(*arguments)
    assert run.failed == dict.fromkeys(HOSTS, 1)
    assert run.changed == NOTHING
    text = run.text.replace('\\"', '"')
    assert text.count(told) >= len(HOSTS)
    (name,) = variables
    assert name in text
    assert (site.each(f"cat {CONF}"), site.cpus("web"), site.limits()) == before


def test_at_the_next_start(site: Site) -> None:
    site.settings = {**RESERVED, "reserved_host_cpus": "0-3", "apply": "next_start"}
    run = site.play()
    assert run.failed == NOTHING
    assert min(run.changed.values()) > 0
    assert site.cpus("web") == ["3-7"] * 2
    site.start("db")
    assert (site.cpus("web"), site.cpus("db")) == (["4-7"] * 2, ["4-7"] * 2)
    run = site.play()
    assert (run.failed, run.changed) == (NOTHING, NOTHING)


# Prometheus


@contextmanager
def prometheus(program: Path, folder: Path, targets: list[str]) -> Iterator[str]:
    """The address of one that scrapes TARGETS, and knows our rules."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    job = {"job_name": "hosts", "scrape_interval": "2s", "static_configs": [{"targets": targets}]}
    rules = [str(TREE / "packaging/prometheus/alerts.yml")]
    (folder / "prometheus.yml").write_text(
        json.dumps({"scrape_configs": [job], "rule_files": rules})
    )
    command = [
        str(program),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield address
    finally:
        process.kill()
        process.wait()


def query(address: str, text: str) -> dict[str, float]:
    """The values by target; nothing where it does not answer yet."""
    try:
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request("GET", f"/api/v1/query?{urlencode({'query': text})}")
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
    except (OSError, ValueError):
        return {}
    found = answer.get("data", {}).get("result", [])
    return {one["metric"]["instance"]: float(one["value"][1]) for one in found}


def test_prometheus_scrapes_both(site: Site, tmp_path: Path) -> None:
    site.settings = {**RESERVED, "reserved_host_cpus": "0-3", "metrics": True}
    run = site.play()
    assert run.failed == NOTHING
    assert run.changed == dict.fromkeys(HOSTS, 1)
    targets = [f"127.0.0.1:{ports[EXPORTER]}" for ports in site.ports.values()]
    with prometheus(site.tools.prometheus, tmp_path, targets) as address:
        deadline = time.monotonic() + 600
        while len(query(address, "virt_cgroup_running_vms")) < len(HOSTS):
            assert time.monotonic() < deadline, (tmp_path / "prometheus.log").read_text()
            time.sleep(1)
        told = {
            name: query(address, f"virt_cgroup_{name}")
            for name in ("reserved_cpus", "running_vms", "conforming_vms", "vms_memory_limit_bytes")
        }
        in_effect = query(address, 'virt_cgroup_limit_in_effect{kind="cpus"}')
        up = query(address, "up")
    print(told)
    assert up == in_effect == dict.fromkeys(targets, 1)
    assert told["reserved_cpus"] == dict.fromkeys(targets, 4)
    assert told["running_vms"] == told["conforming_vms"]
    assert set(told["running_vms"].values()) == {2}
    assert list(map(told["vms_memory_limit_bytes"].get, targets)) == site.limits()
