"""Prometheus' text format as its own parser takes it, for what virt-cgroup metrics prints."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

NAME = re.compile("[a-z_]+")
SAMPLE = re.compile(
    r'(?P<name>[a-z_]+)(?:\{(?P<labels>(?:[^"]|"(?:[^"\\\n]|\\.)*")*)\})? (?P<value>\S+)'
)
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\[\\n"])*)"(?:,|$)')
ESCAPED = {"\\\\": "\\", "\\n": "\n", '\\"': '"'}


@dataclass
class Family:
    kind: str = ""
    help: str = ""
    samples: dict[tuple[str, ...], float] = field(default_factory=dict)  # by the labels' values
    labels: list[dict[str, str]] = field(default_factory=list)


def parsed(text: str) -> dict[str, Family]:
    """By name. Fails for what the parser of Prometheus refuses: it knows no line ending but \\n."""
    families: dict[str, Family] = {}
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            _, _, name, told = line.split(" ", 3)
            assert NAME.fullmatch(name) and name not in families
            families[name] = Family(help=told)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert list(families)[-1] == name and not families[name].kind
            families[name].kind = kind
        else:
            _add_sample(families, line)
    assert all(family.kind and family.help and family.samples for family in families.values())
    return families


def _add_sample(families: dict[str, Family], line: str) -> None:
    found = SAMPLE.fullmatch(line)
    assert found, line
    family = families[found["name"]]
    assert list(families)[-1] == found["name"]  # a family is told in one piece
    pairs = LABEL.findall(found["labels"] or "")
    assert LABEL.sub("", found["labels"] or "") == "", line
    labels = {name: re.sub(r"\\.", lambda match: ESCAPED[match[0]], value) for name, value in pairs}
    assert len(labels) == len(pairs)
    assert tuple(labels.values()) not in family.samples
    family.samples[tuple(labels.values())] = float(found["value"])
    family.labels.append(labels)


def value(text: str, name: str, *labels: str) -> float | None:
    """The value of `virt_cgroup_NAME` with the values LABELS; None where there is none."""
    family = parsed(text).get(f"virt_cgroup_{name}", Family())
    return family.samples.get(labels)
