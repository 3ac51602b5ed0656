"""What the VMs may use is what the host has less what it keeps; and whether a VM's pins are within
it.
"""

from __future__ import annotations

import pytest

from libvirt_cgroup_hooks.admission import Cpus, check_cpus, check_memory, pins_outside
from libvirt_cgroup_hooks.config import Config
from libvirt_cgroup_hooks.cpuset import CpuSet
from libvirt_cgroup_hooks.errors import Error, Refusal, size
from libvirt_cgroup_hooks.fence import Fence, reserved_memory
from libvirt_cgroup_hooks.memory import Memory

from .support.hosts import PAGE, UUID, configured, domain, topology

GIB = 2**30


def fence_of(text: str, name: str) -> Fence:
    host = topology(name)
    return configured(text, name).fence(host.online, host.memory, PAGE)


@pytest.mark.parametrize(
    ("host", "text", "cpus", "memory"),
    [
        ("smt", "", None, None),
        ("smt", "reserved_host_cpus = '0,4'", "1-3,5-7", None),
        ("smt", "reserved_host_cpus = 1", "1-3,5-7", None),
        ("smt", "reserved_host_cpus = 'auto'", "1-3,5-7", None),
        ("smt", "reserved_host_mem = '4 GiB'", None, 32787480 * 1024 - 4 * GIB),
        ("smt", "reserved_host_mem = 'auto'", None, 32787480 * 1024 * 19 // 20 // PAGE * PAGE),
        ("smt", "reserved_host_mem = '10%'", None, 32787480 * 1024 * 9 // 10 // PAGE * PAGE),
        ("smt", "reserved_host_mem = '1 B'", None, 32787480 * 1024 - PAGE),
        # less the hugepages
        ("numa", "reserved_host_mem = '4 GiB'", None, (65842104 - 10485760) * 1024 - 4 * GIB),
        (
            "numa",
            "reserved_host_cpus = 2\nreserved_host_mem = '4 GiB'",
            "1-3,5-7",
            (65842104 - 10485760) * 1024 - 4 * GIB,
        ),
        ("v1", "reserved_host_mem = 'auto'", None, 2040212 * 1024 // 2 // PAGE * PAGE),
        # without the node that has no CPUs
        ("memory-node", "reserved_host_mem = '1 GiB'", None, 1546024 * 1024 - GIB),
        ("memory-node", "reserved_host_mem = '50%'", None, 1546024 * 512 // PAGE * PAGE),
    ],
)
def test_fence(host: str, text: str, cpus: str | None, memory: int | None) -> None:
    made = fence_of(text, host)
    assert (None if made.cpus is None else str(made.cpus), made.memory) == (cpus, memory)
    assert bool(made) == (cpus is not None or memory is not None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"reserved_host_cpus": "0-3"},
            "reserving CPUs 0-3 leaves none for VMs (online: 0-1): reserve fewer CPUs",
        ),
        (
            {"reserved_host_mem": str(GIB - PAGE + 1)},
            "reserving 1.0 GiB leaves no memory for VMs (1 GiB in all): reserve less",
        ),
    ],
)
def test_nothing_left(values: dict[str, str], message: str) -> None:
    with pytest.raises(Error) as error:
        Config(values).fence(CpuSet([0, 1]), Memory(GIB, 0), PAGE)
    assert str(error.value).startswith(message)


def test_one_page_is_enough() -> None:
    config = Config({"reserved_host_mem": str(GIB - PAGE)})
    assert config.fence(CpuSet([0]), Memory(GIB, 0), PAGE).memory == PAGE


@pytest.mark.parametrize(
    ("setting", "total", "kept"),
    [
        ("1", 100, 1),
        (str(GIB), 100, GIB),
        ("10%", 1000, 100),
        ("33%", 100, 33),
        ("1%", 99, 0),
        ("auto", 40 * GIB, 2 * GIB),
    ],
)
def test_reserved_memory(setting: str, total: int, kept: int) -> None:
    assert reserved_memory(setting, Memory(total, 0)) == kept


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (2**20, "1 MiB"),
        (GIB, "1 GiB"),
        (GIB + GIB // 2, "1.5 GiB"),
        (1024 * GIB, "1024 GiB"),
    ],
)
def test_size(amount: int, text: str) -> None:
    assert size(amount) == text


def pages(*wanted: tuple[int, int | None]) -> str:
    """Of sizes in KiB, for a guest node or all."""
    inner = ""
    for size_kib, node in wanted:
        nodeset = "" if node is None else f" nodeset='{node}'"
        inner += f"<page size='{size_kib}' unit='KiB'{nodeset}/>"
    return f"<memoryBacking><hugepages>{inner}</hugepages></memoryBacking>"


def device(model: str, page_kib: int = 0) -> str:
    """512 MiB of memory, for guest node 0."""
    source = f"<source><pagesize unit='KiB'>{page_kib}</pagesize></source>" if page_kib else ""
    target = "<target><size unit='MiB'>512</size><node>0</node></target>"
    return f"<devices><memory model='{model}'>{source}{target}</memory></devices>"


TWO_CELLS = (
    "<memory unit='GiB'>1</memory><cpu><numa><cell id='0' cpus='0' memory='768' unit='MiB'/>"
    "<cell id='1' cpus='1' memory='262144'/></numa></cpu>"
)


@pytest.mark.parametrize(
    ("inner", "memory"),
    [
        ("<memory unit='GiB'>1</memory>", 1024 + 2 + 8 + 64),
        (
            "<memory unit='GiB'>1</memory><vcpu>4</vcpu><iothreads>2</iothreads>",
            1024 + 2 + 6 * 8 + 64,
        ),
        ("<memory unit='GiB'>1</memory><vcpu current='1'>4</vcpu>", 1024 + 2 + 4 * 8 + 64),
        # the pool has it
        ("<memory unit='GiB'>1</memory><memoryBacking><hugepages/></memoryBacking>", 2 + 8 + 64),
        (
            f"{TWO_CELLS}<memoryBacking><hugepages><page size='2' unit='M' nodeset='1'/>"
            "</hugepages></memoryBacking>",
            768 + 74,
        ),
        (
            f"{TWO_CELLS}<memoryBacking><hugepages><page size='2' unit='M'/></hugepages>"
            "</memoryBacking>",
            74,
        ),
        # a page without nodeset is for all other nodes, and one of the system's own is none
        (f"{TWO_CELLS}{pages((2048, None), (1048576, 0))}", 74),
        (f"{TWO_CELLS}{pages((4, None), (1048576, 0))}", 256 + 74),
        (f"{TWO_CELLS}{pages((4, None))}", 1024 + 74),
        (f"{TWO_CELLS}{pages((4, 1))}", 1024 + 74),
        (f"<memory unit='GiB'>1</memory>{pages((4, None))}", 1024 + 2 + 8 + 64),
        (f"<memory unit='GiB'>1</memory>{pages((2048, 0))}", 2 + 8 + 64),
        # libvirt counts memory devices into <memory>
        (f"<memory unit='GiB'>1</memory>{device('dimm')}", 1024 + 2 + 8 + 64),
        (f"<memory unit='GiB'>1</memory>{device('virtio-mem')}", 1024 + 2 + 8 + 64),
        (f"<memory unit='GiB'>1</memory>{device('nvdimm')}", 512 + 1 + 8 + 64),
        (f"<memory unit='GiB'>1</memory>{device('virtio-pmem')}", 512 + 1 + 8 + 64),
        (f"<memory unit='GiB'>1</memory>{device('sgx-epc')}", 512 + 1 + 8 + 64),
        (f"<memory unit='GiB'>1</memory>{device('dimm', 2048)}", 512 + 2 + 8 + 64),
        (f"<memory unit='GiB'>1</memory>{pages((2048, None))}{device('dimm')}", 2 + 8 + 64),
        (f"<memory unit='GiB'>1</memory>{pages((2048, None))}{device('dimm', 4)}", 512 + 74),
        (f"<memory unit='GiB'>1</memory>{pages((2048, None))}{device('nvdimm')}", 1 + 8 + 64),
        ("", 8 + 64),
    ],
)
def test_what_a_vm_takes_with_qemus_own(inner: str, memory: int) -> None:
    assert domain(inner=inner).host_memory(4096) == memory * 2**20


@pytest.mark.parametrize(("others", "fits"), [(0, True), (1024, True), (1025, False)])
def test_admission(others: int, fits: bool) -> None:
    made, limit = (
        domain("we\nb", "<memory unit='MiB'>512</memory>"),
        (1024 + 512 + 1 + 8 + 64) * 2**20,
    )
    if fits:
        check_memory(made, made.host_memory(4096), others * 2**20, limit)
        return
    with pytest.raises(Refusal) as error:
        check_memory(made, made.host_memory(4096), others * 2**20, limit)
    assert str(error.value) == (
        r"VM we\nb needs 585 MiB including QEMU's overhead; "
        "running VMs already account for 1.0 GiB of the 1.6 GiB available to VMs: "
        "stop another VM, give this one less memory, or set memory_admission = 0"
    )


TUNE = (
    "<cputune><vcpupin vcpu='0' cpuset='0-1'/><vcpupin vcpu='1' cpuset='2'/>"
    "<emulatorpin cpuset='0'/></cputune>"
)


@pytest.mark.parametrize(
    ("inner", "cpus", "outside"),
    [
        ("", "1-3", []),
        (TUNE, "0-3", []),
        (TUNE, "1-3", ["emulator to 0 (reserved: 0)", "vcpu0 to 0-1 (reserved: 0)"]),
        (
            TUNE,
            "3",
            [
                "emulator to 0 (reserved: 0)",
                "vcpu0 to 0-1 (reserved: 0-1)",
                "vcpu1 to 2 (reserved: 2)",
            ],
        ),
        (
            "<vcpu cpuset='0-3'>1</vcpu>",
            "1-3",
            ["emulator to 0-3 (reserved: 0)", "vcpu0 to 0-3 (reserved: 0)"],
        ),
        (
            "<cputune><iothreadpin iothread='3' cpuset='0'/></cputune>",
            "1-3",
            ["iothread3 to 0 (reserved: 0)"],
        ),
    ],
)
def test_pins_outside(inner: str, cpus: str, outside: list[str]) -> None:
    made, allowed = domain(inner=inner), CpuSet.parse(cpus)
    assert sorted(pins_outside(made.pins(), allowed)) == outside
    given = Cpus(allowed, allowed, CpuSet.parse("0-3") - allowed, {}, False, [])
    assert bool(check_cpus(made, given, "warn")) is bool(outside)


def test_a_pin_outside_is_refused_in_one_sentence() -> None:
    with pytest.raises(Refusal) as error:
        check_cpus(
            domain("we\nb", "<cputune><emulatorpin cpuset='0-1'/></cputune>"),
            Cpus(CpuSet.parse("1-7"), CpuSet.parse("1-7"), CpuSet([0]), {}, False, []),
            "refuse",
        )
    assert str(error.value) == (
        r"VM we\nb is pinned to reserved CPUs: emulator to 0-1 (reserved: 0): "
        f"pin it within 1-7 (virsh emulatorpin {UUID} 1-7 --config, or in its XML), or reserve "
        "other CPUs"
    )


EIGHT = Cpus(CpuSet.parse("2-7"), CpuSet.parse("2-7"), CpuSet.parse("0-1"), {}, False, [])


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (
            "<vcpupin vcpu='0' cpuset='24'/><vcpupin vcpu='1' cpuset='25'/>",
            "CPUs that do not exist: vcpu0 to 24 (missing: 24), "
            "vcpu1 to 25 (missing: 25): pin it within 2-7 "
            "(virsh vcpupin db 0 2-7 --config, or in its XML)",
        ),
        (
            "<iothreadpin iothread='1' cpuset='2,8-9'/>",
            "CPUs that do not exist: iothread1 to 2,8-9 (missing: 8-9): "
            "pin it within 2-7 (virsh iothreadpin db 1 2-7 --config, or in its XML)",
        ),
        (
            "<emulatorpin cpuset='1,2'/>",
            "reserved CPUs: emulator to 1-2 (reserved: 1): pin it within 2-7 "
            "(virsh emulatorpin db 2-7 --config, or in its XML), or reserve other CPUs",
        ),
        ("<vcpupin vcpu='0' cpuset='2-3'/>", None),
    ],
)
def test_pins_of_another_host(inner: str, message: str | None) -> None:
    """pin_conflict counts for CPUs that do not exist as for reserved ones."""
    made = domain("db", f"<vcpu>2</vcpu><iothreads>1</iothreads><cputune>{inner}</cputune>")
    if message is None:
        assert check_cpus(made, EIGHT, "refuse") == []
        return
    with pytest.raises(Refusal) as error:
        check_cpus(made, EIGHT, "refuse")
    assert str(error.value) == f"VM db is pinned to {message}"
    assert check_cpus(made, EIGHT, "warn") == [str(error.value)]


@pytest.mark.parametrize("conflict", ["refuse", "warn"])
@pytest.mark.parametrize("cpus", ["24-47", "0", "2,99"])
def test_pins_of_vcpus_that_are_offline_are_told(cpus: str, conflict: str) -> None:
    pins = f"<cputune><vcpupin vcpu='0' cpuset='2'/><vcpupin vcpu='3' cpuset='{cpus}'/></cputune>"
    (warning,) = check_cpus(domain("db", f"<vcpu current='1'>4</vcpu>{pins}"), EIGHT, conflict)
    assert f"vcpu3 to {cpus}" in warning


@pytest.mark.parametrize(
    ("pins", "all_of_them", "told"),
    [
        ("<vcpupin vcpu='0' cpuset='6-7'/>", False, ""),
        ("<vcpupin vcpu='0' cpuset='6-7'/>", True, "vcpu0 to 6-7 (offline: 7)"),
        ("<vcpupin vcpu='0' cpuset='1,6'/>", True, ""),
        ("<vcpupin vcpu='0' cpuset='1,7'/>", False, ""),
        ("<vcpupin vcpu='0' cpuset='7'/>", False, "vcpu0 to 7 (offline: 7)"),
        (
            "".join(f"<vcpupin vcpu='{number}' cpuset='7'/>" for number in range(18)),
            False,
            "vcpu15 to 7 (offline: 7), and 2 more",
        ),
    ],
)
def test_pinned_to_offline_cpus(pins: str, all_of_them: bool, told: str) -> None:
    made = domain("web", f"<vcpu>32</vcpu><cputune>{pins}</cputune>")
    fence, pinnable, reserved = map(CpuSet.parse, ("2-6", "2-7", "0-1"))  # CPU 7 is offline
    cpus = Cpus(fence, pinnable, reserved, {}, all_of_them, [])
    if not told:
        assert bool(check_cpus(made, cpus, "warn")) is ("1," in pins)
        return
    with pytest.raises(Refusal) as error:
        check_cpus(made, cpus, "refuse")
    assert error.value.message.startswith("VM web is pinned to CPUs that are offline: vcpu0 to ")
    assert error.value.message.endswith(told)
    assert error.value.hint == "bring them online, or pin it within 2-6"
