"""virt-cgroup recommend on this machine: its figures against the kernel's."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .harness import CONFIG, HAS_V1, cgroup_directory, start_vm
from .pace import patient, wait_for
from .reserving import COMMAND

MIB = 1024**2
KNOWN = 100 * MIB
MOVES = 16 * MIB  # what an interpreter needs, and what moves between two reads
NAME = "known"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[None]:
    """In a cgroup at the top: it holds KNOWN bytes and does nothing."""
    directories = {cgroup_directory(controller) / NAME for controller in ("memory", "cpuacct")}
    for directory in directories:
        directory.mkdir()
    ready = tmp_path / "ready"
    lines = [f"open({str(one / 'cgroup.procs')!r}, 'w').write('0')" for one in directories]
    lines += [f"held = b'x' * {KNOWN}", f"open({str(ready)!r}, 'w')", "import time"]
    lines += ["time.sleep(600)"]
    process = subprocess.Popen([sys.executable, "-c", "\n".join(lines)])
    wait_for(ready.exists, "the service to hold its memory")
    yield
    process.kill()
    process.wait()
    for directory in directories:
        directory.rmdir()


def recommended(*arguments: str) -> dict[str, Any]:
    command = [*COMMAND, "recommend", "--json", "--seconds", "2", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=patient())
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_memory_and_peak(configure: Callable[[str], None], service: None) -> None:
    configure("")
    start_vm("web")
    report = recommended()
    lines = {line["name"]: line for line in report["memory"]}
    line = lines[NAME]
    assert KNOWN <= line["now"] <= KNOWN + MOVES
    assert line["peak"] is None or line["now"] <= line["peak"] <= KNOWN + MOVES
    assert ("usage_in_bytes" if HAS_V1 else "current") in line["source"]
    assert "machine" not in lines
    assert [vm["name"] for vm in report["vms"]] == ["web"]


def test_a_look_takes_its_time_and_changes_nothing(configure: Callable[[str], None]) -> None:
    configure("# mine\n")
    text, began = CONFIG.read_text(), time.monotonic()
    report = recommended()
    assert time.monotonic() - began >= 2
    assert report["seconds"] == pytest.approx(2, abs=1)
    assert CONFIG.read_text() == text
    whole = next(line for line in report["cpu"] if line["name"] == "whole host")
    assert 0 < whole["now"] <= 1.2 * (len(report["interrupts"]) + 64)


def test_progress_is_for_a_terminal(configure: Callable[[str], None]) -> None:
    """It is gone when the look is over."""
    configure("")
    reader, terminal = pty.openpty()
    command = [*COMMAND, "recommend", "--seconds", "2"]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=terminal, text=True, timeout=patient()
    )
    os.close(terminal)
    told = os.read(reader, 65536).decode()
    os.close(reader)
    assert "looking for 2 seconds, 2 left" in told
    assert told.endswith("\r\033[K")
    assert "looking" not in done.stdout
    assert "Proposed:" in done.stdout


def test_the_proposal_is_written(configure: Callable[[str], None]) -> None:
    configure("# mine\n")
    text = CONFIG.read_text()
    proposed = recommended("--write")["proposed"]
    assert CONFIG.read_text().startswith(text)
    assert f'reserved_host_cpus = "{proposed["cpus"]}"\n' in CONFIG.read_text()
    configured = recommended()["configured"]
    assert configured == {"cpus": proposed["cpus"], "memory": proposed["memory"]}
