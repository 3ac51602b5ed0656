# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every setting of cgroup-hooks.conf: one table that feeds the parser, the snapshot, the sample
file and the manual.
"""

from __future__ import annotations

from .config import DEFAULTS
from .cpuset import CpuSet
from .errors import Error, printable
from .layout import NATIVE, PRESETS, Layout
from .lending import CLASSES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .virconf import Value

UNIT_CHARACTERS = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:-_.\\")
NOT_ON_TOP = (".service", ".socket", ".mount", ".timer", ".target", ".path", ".swap", ".device")
FLAGS = ("0", "1")
REFUSE_OR_WARN = ("refuse", "warn")
CONFINE = ("no", "asked", "running", "always")
PROTECT = ("no", "low", "min")
UNITS = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
}
UNITS.update({"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12})


class Setting:
    """One key. `read` turns a value of the file into canonical text, or raises Error."""

    __slots__ = ("choices", "default", "example", "key", "prose", "read")

    def __init__(
        self,
        key: str,
        read: Callable[[Value], str],
        example: str,
        prose: str,
        choices: tuple[str, ...] = (),
    ) -> None:
        self.key = key
        self.read = read
        self.default = DEFAULTS[key]
        self.example = example  # what the sample file shows
        self.prose = prose
        self.choices = choices  # the canonical text of each value, or of each in a list


def text(value: Value) -> str:
    """What is in quotes."""
    if not isinstance(value, str):
        raise Error("the value has to be a string", "put it in quotes")
    return value


def cpu_list(value: Value) -> str:
    """A list with at least one CPU, in canonical form."""
    cpus = CpuSet.parse(text(value))
    if not cpus:
        raise Error("the CPU list is empty", "name at least one CPU, or remove the line")
    return str(cpus)


def reserved_cpus(value: Value) -> str:
    """Canonical: a range form, "auto", or "count N"."""
    if isinstance(value, int):
        if value < 1:
            raise Error("the count of CPUs has to be 1 or more", "to reserve none, remove the line")
        return f"count {value}"
    if not isinstance(value, str):
        raise Error("the value has to be a string or a count", 'write "0-1", 2 or "auto"')
    return value if value == "auto" else cpu_list(value)


def reserved_memory(value: Value) -> str:
    """Canonical: a number of bytes, "N%" or "auto"."""
    if isinstance(value, str) and value.strip() == "auto":
        return "auto"
    number, unit = _amount(value, 'write "4 GiB", "512 MiB", "10%" or "auto"')
    if unit == "%":
        if not 0 < number < 100:
            raise Error(f'"{number}%" of memory cannot be reserved', "write 1% to 99%")
        return f"{number}%"
    if not number:
        raise Error("the amount of memory is zero", "to reserve none, remove the line")
    return str(number * UNITS[unit])


def swap(value: Value) -> str:
    """Canonical: a number of bytes, or "N%"."""
    if value in (0, "0"):
        return "0"
    number, unit = _amount(value, 'write "2 GiB", "512 MiB", "25%" or 0')
    if unit != "%":
        return str(number * UNITS[unit])
    if number > 100:
        raise Error(f'there is no "{number}%" of swap', "write 0% to 100%")
    return f"{number}%"


def _amount(value: Value, remedy: str) -> tuple[int, str]:
    """Of memory: number and unit, which is one of UNITS or "%". Raises Error with REMEDY."""
    if isinstance(value, int) or (isinstance(value, str) and value.strip().isdigit()):
        raise Error("an amount of memory needs a unit", f'write "{value} MiB" or "{value} GiB"')
    amount = text(value).strip()
    number = amount.rstrip("%BKMGTi").strip()
    unit = amount[len(number) :].strip() if amount.startswith(number) else ""
    is_number = number.isascii() and number.isdigit() and len(number) < 16
    if not is_number or unit not in (*UNITS, "%"):
        raise Error(f'"{printable(amount)}" is not an amount of memory', remedy)
    return int(number), unit


def layout(value: Value) -> str:
    """The layout's preset, or its template."""
    return Layout(text(value)).preset


def flag(value: Value) -> str:
    """Either "0" or "1"."""
    if value not in (0, 1):
        raise Error("the value has to be 0 or 1", "write it without quotes")
    return str(value)


def seconds(value: Value) -> str:
    """From 1 to 600."""
    if not isinstance(value, int) or not 1 <= value <= 600:
        raise Error(
            "the value has to be a number of seconds from 1 to 600", "write it without quotes"
        )
    return str(value)


def one_of(*words: str) -> Callable[[Value], str]:
    """One of the WORDS."""

    def read(value: Value) -> str:
        if value not in words:
            raise Error(
                "the value has to be " + " or ".join(f'"{word}"' for word in words),
                "" if isinstance(value, str) else "put it in quotes",
            )
        return str(value)

    return read


def unit_names(value: Value) -> str:
    """Canonical: the names, with a space between two."""
    if not isinstance(value, list) or not value:
        raise Error("the value has to be a list of names", 'write ["system.slice", "user.slice"]')
    for name in value:
        shown = printable(str(name)[:200])
        named = isinstance(name, str) and name.strip(".-") and set(name) <= UNIT_CHARACTERS
        if not isinstance(name, str) or not named or name == "-.slice":
            raise Error(f'"{shown}" is not a unit name', 'write ["system.slice", "user.slice"]')
        if name.endswith(NOT_ON_TOP) or (name.endswith(".scope") and name != "init.scope"):
            raise Error(
                f"{shown} is not a slice",
                "name slices, or init.scope; to confine one service, give it a slice (Slice=)",
            )
    return " ".join(dict.fromkeys(map(str, value)))


def weight(value: Value) -> str:
    """From 1 to 10000."""
    if not isinstance(value, int) or not 1 <= value <= 10000:
        raise Error("the value has to be a number from 1 to 10000", "write it without quotes")
    return str(value)


def thread_classes(value: Value) -> str:
    """Canonical: the classes, with a space between two."""
    if not isinstance(value, list) or not value or not set(map(str, value)) <= set(CLASSES):
        raise Error(
            'the value has to be a list of "emulator" and "iothread"',
            'write ["emulator"], ["iothread"] or ["emulator", "iothread"]; vCPUs cannot be listed',
        )
    return " ".join(dict.fromkeys(map(str, value)))


TABLE = (
    Setting(
        "reserved_host_cpus",
        reserved_cpus,
        '"0-1"',
        "CPUs that the host keeps for itself: VMs cannot run on them.\n"
        'A list in quotes ("0-1,^3" as for vcpupin), a count without quotes, or "auto".\n'
        "A count takes whole cores with their SMT siblings, lowest first, spread\n"
        'evenly over the NUMA nodes. "auto" reserves one core per 32, at least one.\n'
        "Not set: VMs may use every CPU.",
    ),
    Setting(
        "reserved_host_mem",
        reserved_memory,
        '"4 GiB"',
        "Memory that the host keeps for itself: all VMs together get the rest,\n"
        'less the hugepage pools. A size with its unit, a share such as "10%", or\n'
        '"auto": 5 %, at least 1 GiB, at most 8 GiB, and at most half of what is not\n'
        "in hugepage pools. Memory of NUMA nodes without CPUs, such as a GPU's, is not\n"
        "counted.\n"
        "It needs a layout with a cgroup for VMs alone, so not flat, root or uuid.\n"
        "Not set: the VMs' memory has no common limit.",
    ),
    Setting(
        "cgroup_layout",
        layout,
        f'"{NATIVE}"',
        "Where the cgroup of each VM is: a preset or a template.\n"
        + "".join(
            f"  {name:8}{'what libvirt itself does' if name == NATIVE else path}\n"
            for name, path in PRESETS.items()
        )
        + "$LIBVIRTD is the daemon's own cgroup, $DRIVER is qemu; $NAME, $UUID and $ID\n"
        'are the VM\'s; a leading / is the root. For example "/vms/$DRIVER-$UUID".',
    ),
    Setting(
        "emulator_cpus",
        cpu_list,
        '"2-3"',
        "CPUs for the emulator threads of every VM. An emulatorpin in the VM's own\nXML wins.",
    ),
    Setting(
        "vcpu_cpus",
        cpu_list,
        '"4-15"',
        "CPUs for the vCPU threads of every VM. A vcpupin in the VM's own XML wins.",
    ),
    Setting(
        "iothread_cpus",
        cpu_list,
        '"2-3"',
        "CPUs for the I/O threads of every VM. An iothreadpin in the VM's own XML\nwins.",
    ),
    Setting(
        "pin_conflict",
        one_of(*REFUSE_OR_WARN),
        '"refuse"',
        'What to do with a VM whose XML pins it to reserved CPUs: "refuse" does not\n'
        'start it and says why; "warn" logs it, but libvirt may then fail to start it\n'
        '("Invalid argument", or on cgroup v1 "Permission denied").',
        REFUSE_OR_WARN,
    ),
    Setting(
        "memory_admission",
        flag,
        "0",
        "1 refuses to start a VM whose memory does not fit beside that of the VMs that\n"
        "are already running. It needs reserved_host_mem.",
        FLAGS,
    ),
    Setting(
        "hook_timeout",
        seconds,
        "10",
        "Seconds that one run of the hook may take; libvirt itself has no timeout.",
    ),
    Setting(
        "on_error",
        one_of(*REFUSE_OR_WARN),
        '"refuse"',
        "What to do when a VM starts and the reservation or the VM's place cannot be\n"
        'enforced, also because of a mistake in this file: "refuse" does not start it,\n'
        '"warn" logs the reason and starts it anyway. Running VMs are never stopped.',
        REFUSE_OR_WARN,
    ),
    Setting(
        "confine_host",
        one_of(*CONFINE),
        '"running"',
        'When the host\'s own work is kept on reserved_host_cpus: "no": never\n'
        '(the default); "running": while a VM runs; "asked": while a VM runs that has\n'
        'confine_host = yes in its metadata; "always": from boot on. Kernel threads,\n'
        "interrupts and units that host_units does not name are not affected. It needs\n"
        "cgroup v2.",
        CONFINE,
    ),
    Setting(
        "host_units",
        unit_names,
        '["system.slice", "user.slice", "init.scope"]',
        "The host's own work, for confine_host: slices and init.scope; without systemd,\n"
        "cgroups right below the root. A service that needs CPUs of VMs belongs in a\n"
        "slice that is not named here.",
    ),
    Setting(
        "host_cpus_for",
        thread_classes,
        '["emulator", "iothread"]',
        "Classes of VM threads that may be pinned to reserved_host_cpus as well, by the\n"
        "VM's XML or by emulator_cpus and iothread_cpus; usual where vCPUs have CPUs\n"
        "for themselves. It is for VMs whose vCPUs are all pinned in their XML. The CPU\n"
        "limit is then each VM's own, not one of all VMs together.\n"
        "Not set: VMs that are pinned to reserved CPUs are refused (see pin_conflict).",
        CLASSES,
    ),
    Setting(
        "vm_swap_max",
        swap,
        "0",
        "Swap that all VMs together may have: a size with its unit, a share of the\n"
        'host\'s swap such as "25%", or 0. When VMs reach the memory ceiling of\n'
        "reserved_host_mem, the kernel swaps them out, and kills one where that is not\n"
        "enough. On cgroup v1 it needs reserved_host_mem.\n"
        "Not set: VMs may fill the host's swap.",
    ),
    Setting(
        "protect_host_mem",
        one_of(*PROTECT),
        '"min"',
        "Whether the kernel keeps reclaim away from the memory of host_units while VMs\n"
        'run, up to reserved_host_mem: "min" always, and it kills a process first;\n'
        '"low" while it finds memory elsewhere, which hardly helps on kernels with the\n'
        'multi-generational LRU; "no" is the default. The first of host_units gets what\n'
        "a sixteenth for each of the others leaves. It needs cgroup v2.",
        PROTECT,
    ),
    Setting(
        "vm_cpu_weight",
        weight,
        "50",
        "The share of CPU time that all VMs together have where CPUs are short: they\n"
        "compete with the host's slices, which have 100 each. For hosts too small to\n"
        "give whole CPUs away. It limits nothing where nobody else wants a CPU.\n"
        "It needs a layout with a cgroup for VMs alone, as reserved_host_mem does.\n"
        "Not set: 100, as any other slice.",
    ),
)

# What a VM's own metadata may set, by its key there.
OF_VM = {key: key for key in ("emulator_cpus", "vcpu_cpus", "iothread_cpus")}
OF_VM["layout"] = "cgroup_layout"
OF_VM["confine_host"] = "confine_host"
OF_VM["dedicated"] = "dedicated"
# Of a VM alone, or with other words than the host's.
WORDS = {
    "confine_host": one_of("yes", "no"),
    "dedicated": one_of("yes", "no", "threads"),
}


def read_of_vm(key: str, value: str) -> tuple[str, str]:
    """The key of `TABLE` that KEY in a VM's metadata stands for, and VALUE as canonical text.
    Raises Error.
    """
    if key not in OF_VM:
        raise Error("there is no such setting", meant(key, "the settings of a VM", OF_VM))
    read = WORDS.get(key) or named(OF_VM[key]).read
    return OF_VM[key], read(value)


def meant(key: str, what: str, keys: Iterable[str]) -> str:
    """The remedy for a KEY that is none of KEYS, which are WHAT."""
    from difflib import get_close_matches

    alike = get_close_matches(key.lower(), keys, n=1)
    return f"did you mean {alike[0]}?" if alike else f"{what} are {', '.join(keys)}"


def named(key: str) -> Setting:
    """The setting that KEY names."""
    return next(setting for setting in TABLE if setting.key == key)


def sample() -> str:
    """The configuration file as it is installed: every setting explained and commented out."""
    head = (
        "# Configuration of libvirt-cgroup-hooks: what the host keeps for itself, and\n"
        "# where VMs are placed. The syntax is that of qemu.conf. With every setting\n"
        "# commented out, the hook changes nothing.\n"
        "#\n"
        "# An edit takes effect, for running VMs too, when the next VM starts, or at once\n"
        "# with virt-cgroup apply --all. Check it with virt-cgroup validate -q: with a\n"
        "# mistake in this file no VM starts (the error names line and fix), unless\n"
        '# on_error = "warn" is set. Running VMs are not affected.\n'
    )
    parts = [head]
    for setting in TABLE:
        prose = "".join(f"# {line}\n" for line in setting.prose.splitlines())
        parts.append(f"{prose}#{setting.key} = {setting.example}\n")
    return "\n".join(parts)
