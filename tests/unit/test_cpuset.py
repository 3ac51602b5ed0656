"""CPU lists as administrators, libvirt and the kernel write them."""

from __future__ import annotations

import itertools

import pytest

from libvirt_cgroup_hooks.cpuset import LIMIT, CpuSet
from libvirt_cgroup_hooks.errors import Error


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("", []),
        ("  \n", []),
        ("0", [0]),
        ("0\n", [0]),
        ("0-3", [0, 1, 2, 3]),
        ("3-3", [3]),
        ("0,2,4", [0, 2, 4]),
        ("4,2,0,2", [0, 2, 4]),
        ("0-1,6-7", [0, 1, 6, 7]),
        ("0-3,2-5", [0, 1, 2, 3, 4, 5]),
        ("0-3,^1", [0, 2, 3]),
        ("0-7,^2-5", [0, 1, 6, 7]),
        ("^1,0-3", [0, 1, 2, 3]),  # from left to right: nothing to take 1 from yet
        ("0-3,^0-3,2", [2]),
        (" 0 - 2 , 5 , ^ 1 ", [0, 2, 5]),
        ("007", [7]),
        ("8191", [8191]),
    ],
)
def test_parse(text: str, cpus: list[int]) -> None:
    assert list(CpuSet.parse(text)) == cpus


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",", '"," is not a CPU list: write numbers and ranges, such as "0-3,8,^2"'),
        ("1,", '"1," is not a CPU list: write numbers and ranges'),
        ("1,,2", '"1,,2" is not a CPU list: write numbers'),
        ("0-", '"0-" is not a CPU list: write numbers'),
        ("-1", '"-1" is not a CPU list: write numbers'),
        ("0-1-2", '"0-1-2" is not a CPU list: write numbers'),
        ("0 1", '"0 1" is not a CPU list: write numbers'),
        ("0x3", '"0x3" is not a CPU list: write numbers'),
        ("1.5", '"1.5" is not a CPU list: write numbers'),
        ("all", '"all" is not a CPU list: write numbers'),
        ("^", '"^" is not a CPU list: write numbers'),
        ("0-2:1/2", '"0-2:1/2" is not a CPU list: write numbers'),
        ("²", '"²" is not a CPU list: write numbers'),
        ("٣", '"٣" is not a CPU list: write numbers'),
        ("1\x1b[31m", r'"1\x1b[31m" is not a CPU list: write numbers'),
        ("3-1", '"3-1" is not a CPU list: 3-1 runs backwards; write 1-3'),
        ("8192", '"8192" is not a CPU list: no kernel has more than 8192 CPUs'),
        (
            "0-99999999999999999999",
            '"0-99999999999999999999" is not a CPU list: no kernel has more than 8192 CPUs',
        ),
    ],
)
def test_what_is_no_list(text: str, message: str) -> None:
    with pytest.raises(Error) as error:
        CpuSet.parse(text)
    assert str(error.value).startswith(message)


def test_a_long_text_is_shown_in_part() -> None:
    with pytest.raises(Error) as error:
        CpuSet.parse("x" * 100_000)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("cpus", "text"),
    [
        ([], ""),
        ([0], "0"),
        ([0, 1], "0-1"),
        ([1, 0, 2], "0-2"),
        ([0, 2], "0,2"),
        ([0, 1, 3, 5, 6, 7], "0-1,3,5-7"),
        (range(LIMIT), "0-8191"),
    ],
)
def test_text_is_the_kernels_range_form(cpus: list[int], text: str) -> None:
    assert str(CpuSet(cpus)) == text
    assert repr(CpuSet(cpus)) == f"CpuSet('{text}')"
    assert CpuSet.parse(text) == CpuSet(cpus)


SUBSETS = [
    set(chosen) for size in range(6) for chosen in itertools.combinations((0, 1, 2, 5, 64), size)
]


def test_algebra_is_that_of_sets() -> None:
    for left, right in itertools.product(SUBSETS, SUBSETS):
        a, b = CpuSet(left), CpuSet(right)
        assert set(a & b) == left & right
        assert set(a | b) == left | right
        assert set(a - b) == left - right
        assert (a <= b) == (left <= right)
        assert (a == b) == (left == right)


@pytest.mark.parametrize("cpus", SUBSETS)
def test_a_set_has_length_truth_and_hash(cpus: set[int]) -> None:
    made = CpuSet(cpus)
    assert (len(made), bool(made), set(made)) == (len(cpus), bool(cpus), cpus)
    assert hash(made) == hash(CpuSet.parse(str(made)))
    assert made != str(made)
