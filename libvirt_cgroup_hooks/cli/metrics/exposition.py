# SPDX-License-Identifier: LGPL-2.1-or-later
"""Prometheus' text format, as node_exporter's textfile collector reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Union

Number = Union[int, float]
Labels = tuple[tuple[str, str], ...]  # names and values


@dataclass(frozen=True)
class Metric:
    """A name with what Prometheus is told of it; `kind` is "gauge" or "counter"."""

    name: str
    kind: str
    help: str


class Samples:
    """Values by metric and labels: one for each set of labels, as Prometheus wants it."""

    def __init__(self) -> None:
        self.values: dict[Metric, dict[Labels, Number]] = {}

    def add(self, metric: Metric, value: Number | None, **labels: str) -> None:
        """None: there is nothing to tell."""
        if value is not None:
            self.values.setdefault(metric, {})[tuple(labels.items())] = value


def text(samples: Samples) -> str:
    """Each metric with its values; a metric without any is left out."""
    lines: list[str] = []
    for metric, values in samples.values.items():
        lines.append(f"# HELP {metric.name} {metric.help}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for labels, value in values.items():
            lines.append(f"{metric.name}{_braced(labels)} {_number(value)}")
    return "".join(f"{line}\n" for line in lines)


def as_json(samples: Samples) -> list[dict[str, Any]]:
    """The same for `--json`."""
    return [
        {
            "name": metric.name,
            "type": metric.kind,
            "help": metric.help,
            "samples": [
                {"labels": dict(labels), "value": value} for labels, value in values.items()
            ],
        }
        for metric, values in samples.values.items()
    ]


def _braced(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = ",".join(f'{name}="{escaped(value)}"' for name, value in labels)
    return f"{{{pairs}}}"


def escaped(value: str) -> str:
    """A label's value as it stands between quotes."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: Number) -> str:
    """True and False are 1 and 0."""
    return repr(value) if isinstance(value, float) else str(int(value))
