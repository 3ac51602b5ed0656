"""The alert rules and the dashboard name metrics that there are, and the units write them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from libvirt_cgroup_hooks.cli import parser
from libvirt_cgroup_hooks.cli.metrics import table

from .support.hosts import DATA

PACKAGING = Path(__file__).parents[2] / "packaging"
ALERTS = PACKAGING / "prometheus/alerts.yml"
DASHBOARD = PACKAGING / "grafana/libvirt-cgroup-hooks.json"
METRICS = {metric.name for metric in table.METRICS}
OTHERS = {"node_textfile_mtime_seconds"}  # node_exporter's own


def names(text: str) -> set[str]:
    return set(re.findall(r"\b(?:virt_cgroup|node_textfile)_[a-z_]+", text))


@pytest.mark.parametrize(
    "file", [ALERTS, DASHBOARD, DATA / "alerts.yml"], ids=lambda file: file.name
)
def test_metrics_that_are_named_are_there(file: Path) -> None:
    named = names(file.read_text(encoding="utf-8"))
    assert named
    assert named <= METRICS | OTHERS


def test_every_alert_is_tested() -> None:
    rules = re.findall(r"alert: (\w+)", ALERTS.read_text(encoding="utf-8"))
    tested = re.findall(r"alertname: (\w+)", (DATA / "alerts.yml").read_text(encoding="utf-8"))
    assert len(rules) == 6
    assert set(rules) == set(tested)


def test_the_dashboard_is_one() -> None:
    found = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    numbers = [panel["id"] for panel in found["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in found["panels"]:
        assert panel["targets"]
        for target in panel["targets"]:
            assert names(target["expr"]) & METRICS
            assert '{instance=~"$instance"' in target["expr"]
    areas = [tuple(panel["gridPos"][key] for key in "xywh") for panel in found["panels"]]
    cells = [(x + i, y + j) for x, y, w, h in areas for i in range(w) for j in range(h)]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23


def test_the_service_runs_what_there_is() -> None:
    unit = (PACKAGING / "libvirt-cgroup-hooks-metrics.service").read_text(encoding="utf-8")
    command = re.findall(r"^ExecStart=.* libvirt_cgroup_hooks (.*)$", unit, re.MULTILINE)
    arguments = parser().parse_args(command[0].split())
    assert arguments.output == "${TEXTFILE_DIRECTORY}/libvirt-cgroup-hooks.prom"
    assert len(re.findall("^Environment=TEXTFILE_DIRECTORY=/", unit, re.MULTILINE)) == 1
