"""Sum up what tests recorded: figures.py JUNIT-XML... (pytest --junitxml=FILE writes them)."""

from __future__ import annotations

import collections
import sys
import xml.etree.ElementTree as ElementTree


def figures(paths: list[str]) -> str:
    """A line for each test function and what it counted; only tests that passed count."""
    passed: collections.Counter[str] = collections.Counter()
    sums: collections.Counter[tuple[str, str]] = collections.Counter()
    for path in paths:
        for case in ElementTree.parse(path).iter("testcase"):  # noqa: S314 our own
            if any(case.find(tag) is not None for tag in ("failure", "error", "skipped")):
                continue
            module = case.get("classname", "").rpartition(".")[2]
            function = case.get("name", "").partition("[")[0]
            test = f"{module}::{function}"
            passed[test] += 1
            for recorded in case.iter("property"):
                sums[test, recorded.get("name", "")] += int(recorded.get("value", "0"))
    return "\n".join(
        f"{count:>8} {what}, {test} ({passed[test]} passed)"
        for (test, what), count in sorted(sums.items())
    )


if __name__ == "__main__":
    print(figures(sys.argv[1:]))
