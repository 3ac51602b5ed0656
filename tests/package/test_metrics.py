"""What virt-cgroup metrics prints, the alert rules, and the file, by Prometheus' own programs."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.cli.metrics import exposition, table

from .conftest import ROOT, run

DATA = ROOT / "tests/data"
NAMES = [
    'a"b',
    "a\\",
    "a\\n",
    "a\nb",
    '"} 1',
    "# HELP x y",
    "a\r\tb",
    "\u2028",
    "💩",
    " ",
    "{",
    "é",
]


def metrics(*arguments: str | Path) -> str:
    return run(sys.executable, "-m", "libvirt_cgroup_hooks", *arguments)


def linted(promtool: Path, text: str) -> str:
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    return f"{done.returncode} {done.stdout}{done.stderr}"


def names_of_all_kinds() -> str:
    samples = exposition.Samples()
    for number, name in enumerate(NAMES):
        samples.add(table.VM_CONFORMS, number, name=name, uuid=str(number))
    return exposition.text(samples)


# rules


def test_the_rules(prometheus: Path) -> None:
    rules = ROOT / "packaging/prometheus/alerts.yml"
    assert "SUCCESS: 6 rules found" in run(prometheus / "promtool", "check", "rules", rules)


def test_alerts_come_when_they_have_to(prometheus: Path) -> None:
    said = run(prometheus / "promtool", "test", "rules", DATA / "alerts.yml")
    assert "SUCCESS" in said


def test_a_rule_that_is_wrong_is_found(prometheus: Path, tmp_path: Path) -> None:
    """The test above would fail."""
    rules = (ROOT / "packaging/prometheus/alerts.yml").read_text()
    tests = (DATA / "alerts.yml").read_text()
    (tmp_path / "tests.yml").write_text(tests.replace("../../packaging/prometheus/", ""))
    for right, wrong in (
        ("< 0.05", "< 0.03"),
        ("> 0.1", "> 0.3"),
        ("> 300", "> 3000"),
        ("> virt_cgroup_host_confined", "< virt_cgroup_host_confined"),
        ("and on (job, instance) virt_cgroup_running_vms > 0", ""),
        ("virt_cgroup_nonconforming_vms > 0", "virt_cgroup_nonconforming_vms >= 0"),
    ):
        assert right in rules
        (tmp_path / "alerts.yml").write_text(rules.replace(right, wrong))
        said = run(prometheus / "promtool", "test", "rules", tmp_path / "tests.yml", check=False)
        assert "FAILED" in said, wrong


# the text


@pytest.mark.parametrize("host", sorted(path.name for path in (DATA / "hosts").iterdir()))
def test_recorded_hosts(prometheus: Path, host: str) -> None:
    text = metrics("--root", DATA / "hosts" / host, "metrics")
    assert linted(prometheus / "promtool", text) == "0 "


def test_this_host_and_every_metric(prometheus: Path) -> None:
    assert linted(prometheus / "promtool", metrics("metrics")) == "0 "
    every = (DATA / "metrics.prom").read_text()
    assert linted(prometheus / "promtool", every) == "0 "


def test_any_name(prometheus: Path) -> None:
    assert linted(prometheus / "promtool", names_of_all_kinds()) == "0 "


# node_exporter


@contextmanager
def exporter(programs: Path, folder: Path) -> Iterator[str]:
    """The address of a node_exporter that reads FOLDER and nothing else."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        str(programs / "prometheus-node-exporter"),
        f"--web.listen-address={address}",
        "--collector.disable-defaults",
        "--collector.textfile",
        f"--collector.textfile.directory={folder}",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield address
    finally:
        process.kill()
        process.wait()


def scraped(address: str) -> list[str]:
    for _ in range(100):
        try:
            connection = http.client.HTTPConnection(address, timeout=10)
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode().split("\n")
        except OSError:
            time.sleep(0.1)
    raise AssertionError("node_exporter does not answer")


def samples(text: str) -> dict[str, float]:
    """The values of TEXT by what stands before them, whatever the order of labels."""
    found: dict[str, float] = {}
    for line in text.split("\n"):
        if line.startswith("virt_cgroup_"):
            name, _, number = line.rpartition(" ")
            base, _, labels = name.partition("{")
            found[f"{base} {sorted(labels.rstrip('}').split(','))}"] = float(number)
    return found


def test_node_exporter_tells_what_the_file_has(prometheus: Path, tmp_path: Path) -> None:
    file = tmp_path / "libvirt-cgroup-hooks.prom"
    with exporter(prometheus, tmp_path) as address:
        for root in (DATA / "hosts/busy", Path("/")):  # replaced while it is read
            metrics("--root", root, "metrics", "--output", file)
            lines = scraped(address)
            assert samples("\n".join(lines)) == samples(file.read_text())
            assert "node_textfile_scrape_error 0" in lines
            (mtime,) = [line for line in lines if line.startswith("node_textfile_mtime_seconds{")]
            assert f'file="{file}"' in mtime
            assert float(mtime.rpartition(" ")[2]) == pytest.approx(file.stat().st_mtime)
    assert 'virt_cgroup_info{version="' in file.read_text()


def test_node_exporter_reads_any_name(prometheus: Path, tmp_path: Path) -> None:
    (tmp_path / "names.prom").write_text(names_of_all_kinds())
    with exporter(prometheus, tmp_path) as address:
        lines = scraped(address)
    assert "node_textfile_scrape_error 0" in lines
    assert len([line for line in lines if line.startswith("virt_cgroup_vm_conforms{")]) == len(
        NAMES
    )
