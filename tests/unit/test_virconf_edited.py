"""Whatever a file says, `edited` sets one setting in it and keeps all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.virconf import edited, parse

if TYPE_CHECKING:
    from libvirt_cgroup_hooks.virconf import Value

hypothesis = pytest.importorskip("hypothesis")
strategies = pytest.importorskip("hypothesis.strategies")

LINES = [
    "key = 1",
    "a = 'x'",
    "b9 = [1]",
    "#key = 1",
    "# why",
    'a = """\n#key = 1\n"""',
    "key = [\r1,\r]",
    "b9 = [\n1]",
]
ENDS = ["\n", "\r\n", "\r", ";", " # why\n", "\n\n"]
# Pieces that files are made of, good ones and such as come near
PIECES = [
    *(
        "key",
        "a",
        "b9",
        "#",
        "# key = 1",
        "#key = 1",
        "key = 1",
        "key = 'x'",
        "a = 1",
        "b9 = [ 1,\n'key' ]",
    ),
    *(
        "=",
        ";",
        ",",
        "[",
        "]",
        "1",
        "-7",
        "'x'",
        '"x"',
        '""',
        '"""',
        '"""key = 1\n#key = 2\n"""',
        "\n#key = 3\n",
    ),
    *(" ", "\t", "\n", "\r", "\r\n", "\f", "\u2028", "ü", "\udc80"),
]


def statements(text: str) -> list[tuple[str, Value]]:
    return [(statement.key, statement.value) for statement in parse(text, "conf")]


def check(pieces: list[str], value: int | None) -> None:
    text = "".join(pieces)
    try:
        before = statements(text)
    except Error:
        hypothesis.reject()
    after = statements(edited(text, "conf", "key", None if value is None else str(value)))
    assert [pair for pair in after if pair[0] != "key"] == [
        pair for pair in before if pair[0] != "key"
    ]
    found = [each for key, each in after if key == "key"]
    assert found[:1] == ([] if value is None else [value])
    if value is not None:
        assert found[1:] == [each for key, each in before if key == "key"][1:]


GOOD = strategies.tuples(strategies.sampled_from(LINES), strategies.sampled_from(ENDS)).map("".join)
ANY = strategies.sampled_from(PIECES)


@pytest.mark.parametrize("piece", [GOOD, ANY], ids=["good", "any"])
def test_all_else_is_kept(piece: Any) -> None:
    values = strategies.one_of(strategies.none(), strategies.integers(0, 9))
    healthy = [hypothesis.HealthCheck.filter_too_much, hypothesis.HealthCheck.too_slow]
    settings = hypothesis.settings(
        deadline=None, database=None, derandomize=True, suppress_health_check=healthy
    )
    settings(hypothesis.given(strategies.lists(piece, max_size=8), values)(check))()
