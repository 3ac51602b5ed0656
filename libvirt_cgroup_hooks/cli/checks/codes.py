# SPDX-License-Identifier: LGPL-2.1-or-later
"""The codes of what virt-cgroup validate finds, for scripts and for --explain: how bad each is, and
the prose.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

PASS, NOTE, WARN, FAIL = "PASS", "NOTE", "WARN", "FAIL"
APPLY = "virt-cgroup apply --parent"


class Code(NamedTuple):
    """`result` is NOTE, WARN or FAIL, `meaning` half a line; `why` it matters, and the `remedy`."""

    result: str
    meaning: str
    why: str
    remedy: str


CODES = {
    # the configuration and the host
    "not-root": Code(
        WARN,
        "validate runs as an ordinary user",
        "Some files can be read by root only, so that some checks cannot be made.",
        "Run it as root.",
    ),
    "not-checked": Code(
        WARN,
        "a check could not be made",
        "A file that it needs cannot be read, or says what is not understood. What the check looks "
        "for may be wrong, or not.",
        "See to what the message names, and run virt-cgroup validate again.",
    ),
    "configuration-invalid": Code(
        FAIL,
        "the configuration is rejected",
        'No VM starts, unless on_error = "warn" is set. Running VMs are not affected.',
        "Correct the line that the message names in /etc/libvirt/cgroup-hooks.conf; see "
        "cgroup-hooks.conf(5).",
    ),
    "configuration-doubtful": Code(
        WARN,
        "the configuration is understood, and perhaps not as it is meant",
        "Of a setting that is given twice, for example, the first value is used.",
        "Change the line that the message names in /etc/libvirt/cgroup-hooks.conf.",
    ),
    "nothing-configured": Code(
        NOTE,
        "nothing is reserved for the host",
        "The hook does nothing, and VMs may use all CPUs and all memory.",
        "Set what the host keeps: virt-cgroup reserve --cpus auto --memory auto --live --config. "
        "virt-cgroup recommend proposes how much.",
    ),
    "machined-missing": Code(
        WARN,
        "systemd manages the cgroups of this host, and those of VMs are made without it",
        "Without systemd-machined or the system bus, libvirt makes cgroups of its own. systemd "
        "does not know them, and its own limits do not hold for them.",
        "Install systemd-container, and restart libvirtd. VMs that run stay where they are until "
        "they are stopped and started.",
    ),
    "controller-missing": Code(
        FAIL,
        "the kernel does not have a cgroup controller that a limit needs",
        "What is configured cannot be enforced, and no VM starts.",
        "Mount the cgroup file system, or boot without the parameter that turns the controller off "
        "(cgroup_disable=, swapaccount=0).",
    ),
    "start-refused": Code(
        FAIL,
        "the next VM would not start",
        "The hook would refuse it, for the reason that the message gives.",
        "Do what the message says. virt-cgroup plan prepare FILE shows the same for a VM's XML.",
    ),
    # the limits of the VM parent
    "parent-missing": Code(
        NOTE,
        "the VM parent does not exist yet",
        "Nothing is wrong: the hook makes it, with its limits, when the first VM starts.",
        f"None is needed. To have it now, run {APPLY}.",
    ),
    "fence-open": Code(
        FAIL,
        "a limit of the VM parent is not in effect while VMs run",
        "VMs can use CPUs or memory that are reserved for the host. Somebody has changed the "
        "limit, or VMs were started before it was configured.",
        f"Run {APPLY}. If it comes back, look for what changes the limit: other hooks, "
        "systemctl set-property, a drop-in of systemd's.",
    ),
    "fence-pending": Code(
        NOTE,
        "a limit of the VM parent is not in effect, and no VM runs",
        "Nothing is lost: the hook sets it before the next VM starts.",
        f"None is needed. To set it now, run {APPLY}.",
    ),
    "fence-narrow": Code(
        WARN,
        "VMs may use less than is configured",
        "The VM parent, or a cgroup above it, is limited further: CPUs came back, or somebody has "
        "set a limit.",
        f"Run {APPLY}. If a cgroup above the VM parent has less, raise its limit first.",
    ),
    "limit-kept": Code(
        NOTE,
        "a narrower limit of the administrator's is kept",
        "The VM parent had it before the hook came. It holds, so the host keeps more than is "
        "configured.",
        "None is needed. To have the configured limit, remove the administrator's.",
    ),
    "limit-replaced": Code(
        FAIL,
        "a file of systemd's opens a limit at the next daemon-reload",
        "systemd goes by its files whenever it reads them, as many packages have it do; the kernel "
        "may follow only when another property of the unit is set. A drop-in whose name sorts "
        "after 50-AllowedCPUs.conf wins, wherever it is: in the unit's own folder, in that of a "
        "prefix (vms-.slice.d), or of all slices (slice.d). CPUs of several files add up.",
        "Remove the line from the file that the message names, and run systemctl daemon-reload and "
        "virt-cgroup apply --parent. systemctl cat UNIT shows all files of a unit.",
    ),
    "limit-forgotten": Code(
        FAIL,
        "systemd does not know a limit that the kernel has",
        "It lifts the limit at the next daemon-reload. The file that keeps it in "
        "/run/systemd/system.control was removed.",
        f"Run {APPLY}.",
    ),
    "limit-unwanted": Code(
        WARN,
        "a limit of an earlier configuration, or of a killed command, is still in effect",
        "VMs or the host have less than is configured.",
        f"Run {APPLY}; the next VM that starts has the same effect.",
    ),
    "cpus-taken": Code(
        WARN,
        "another cgroup has exclusive use of CPUs of VMs",
        "VMs have fewer CPUs: a cpuset partition (cgroup v2), or an exclusive cpuset (v1), has "
        "taken them.",
        "Take them back (echo member >DIRECTORY/cpuset.cpus.partition; of cgroup v1, echo 0 "
        ">DIRECTORY/cpuset.cpu_exclusive), or add them to reserved_host_cpus.",
    ),
    "cpus-all-taken": Code(
        FAIL,
        "another cgroup has exclusive use of all CPUs of VMs",
        "The kernel lets VMs run on what is left: the CPUs that the host keeps.",
        "Take some back (echo member >DIRECTORY/cpuset.cpus.partition; of cgroup v1, echo 0 "
        ">DIRECTORY/cpuset.cpu_exclusive), or reserve other CPUs for the host.",
    ),
    "others-limited": Code(
        WARN,
        "something that is no VM is in the VM parent",
        "Containers of podman and systemd-nspawn, for example, are in machine.slice too: the "
        "limits of the VMs apply to them, and what they use is lost to VMs.",
        'Set cgroup_layout = "/vms/$NAME", which gives VMs a parent of their own, run virt-cgroup '
        "apply --all, and stop and start a VM that is in another slice. Take what is in /vms "
        "itself out of it.",
    ),
    # the host's own work
    "host-unconfined": Code(
        FAIL,
        "the host's own work may run on CPUs of VMs",
        "confine_host is set, and the CPUs of one of the host's units are others: somebody has "
        "changed them.",
        f"Run {APPLY}.",
    ),
    "host-pinned": Code(
        WARN,
        "processes of the host are pinned to CPUs of VMs",
        "They would run on all of the host's CPUs instead, and before Linux 6.2 for good.",
        "Put their services into a slice that host_units does not name (Slice=), or change their "
        "pins (CPUAffinity= of a unit, taskset).",
    ),
    "cgroup-not-confined": Code(
        NOTE,
        "a cgroup of the host's is not reached by confine_host",
        "What runs in it may use CPUs of VMs.",
        f"Name it in host_units, and run {APPLY}.",
    ),
    "root-processes": Code(
        NOTE,
        "processes are in the root cgroup",
        "No limit reaches them there, so they may use CPUs of VMs.",
        "Start them in a cgroup of their own: systemd-run --scope, or a service.",
    ),
    "interrupts": Code(
        NOTE,
        "CPUs of VMs handle interrupts",
        "VMs wait while a CPU of theirs handles one. Queues of NVMe and network devices have an "
        "interrupt for each CPU, and cannot be moved.",
        "Write CPUs of the host to /proc/irq/NUMBER/smp_affinity_list, or let irqbalance do so: "
        "set IRQBALANCE_BANNED_CPULIST to the CPUs of VMs.",
    ),
    "irqbalance": Code(
        NOTE,
        "irqbalance may move interrupts to CPUs of VMs",
        "It uses all CPUs but those that it is told to leave alone.",
        "Set IRQBALANCE_BANNED_CPULIST to the CPUs of VMs in the file that the message names, and "
        "restart irqbalance.",
    ),
    "workqueues": Code(
        NOTE,
        "the kernel's unbound workqueues may run on CPUs of VMs",
        "VMs wait while the kernel works on a CPU of theirs.",
        "Write a mask of the host's CPUs to /sys/devices/virtual/workqueue/cpumask, at every boot.",
    ),
    "kernel-threads": Code(
        NOTE,
        "threads of the kernel may run on CPUs of VMs",
        "VMs wait while one runs on a CPU of theirs. No cpuset reaches them.",
        "Pin each of them (taskset --cpu-list --pid CPUS PID), or boot with isolcpus= or "
        "nohz_full= for the CPUs of VMs.",
    ),
    # the host's memory
    "protection-missing": Code(
        FAIL,
        "memory of the host is not protected while VMs run",
        "protect_host_mem is set, and one of the host's units has another value: somebody has "
        "changed it.",
        f"Run {APPLY}.",
    ),
    "protection-weak": Code(
        WARN,
        "this kernel hardly keeps memory.low from reclaim",
        "With the multi-generational LRU, memory.low protects next to nothing; memory.min does.",
        'Set protect_host_mem = "min", or turn the new LRU off at every boot: echo n '
        ">/sys/kernel/mm/lru_gen/enabled.",
    ),
    "protection-not-recursive": Code(
        FAIL,
        "the protection of a slice does not reach the services in it",
        "cgroup2 is mounted without memory_recursiveprot, so a service in the slice is protected "
        "only as far as it has a protection of its own.",
        "Run mount -o remount,memory_recursiveprot /sys/fs/cgroup, and have it mounted so at boot.",
    ),
    "memory-overcommitted": Code(
        WARN,
        "running VMs may come to use more memory than their limit",
        "When they do, the kernel reclaims their memory, and then kills one of them. The host "
        "keeps its own.",
        "Stop or shrink VMs, give them hugepages, make hugepage pools smaller, or reserve less "
        "memory for the host. memory_admission has the hook refuse such VMs.",
    ),
    "hugepage-pools": Code(
        NOTE,
        "hugepage pools take memory from VMs that have no hugepages",
        "The kernel takes the pools' memory from all, whether VMs use the pools or not.",
        "None is needed if the pools are meant to be as large; else make them smaller "
        "(/proc/sys/vm/nr_hugepages).",
    ),
    "hugepages-unused": Code(
        NOTE,
        "hugepages are free, and no VM has use for them",
        "They are lost to everything that does not ask for hugepages, the host's page cache "
        "included.",
        "If no other program needs them, run the command that the message names, and change the "
        "pool in sysctl.d or on the kernel's command line (hugepages=), too.",
    ),
    "swap-unlimited": Code(
        NOTE,
        "VMs may fill the host's swap",
        "VMs that reach their memory limit are swapped out, until the host's swap is full: the "
        "host is left without, and its disk is busy.",
        "Set a ceiling of swap for all VMs together: virt-cgroup reserve --swap 0 --live --config, "
        "or a size.",
    ),
    # CPUs
    "cpus-offline": Code(
        WARN,
        "CPUs that are reserved are offline",
        "The host does not have what is reserved for it.",
        "Reserve other CPUs, or set them online (/sys/devices/system/cpu/cpuN/online).",
    ),
    "reserved-isolated": Code(
        WARN,
        "CPUs that are reserved for the host are isolated",
        "The kernel does not spread the host's work over CPUs that it was booted with as "
        "isolcpus=, so the host does not use them.",
        "Reserve CPUs that are not isolated, or isolate fewer.",
    ),
    "set-isolated": Code(
        WARN,
        "a CPU set for VMs' threads has several isolated CPUs",
        "The kernel does not spread threads over CPUs that it was booted with as isolcpus=: each "
        "stays on the one that it was started on.",
        "Pin each thread to one CPU in the VM's XML (virsh vcpupin), or leave isolated CPUs out of "
        "the set.",
    ),
    "vm-cpus-isolated": Code(
        NOTE,
        "CPUs of VMs are isolated",
        "VMs use CPUs that the kernel was booted with as isolcpus= only where they are pinned to "
        "them.",
        "None is needed if VMs are pinned to them (virsh vcpupin); else isolate fewer.",
    ),
    "vms-unpinned": Code(
        WARN,
        "a VM without pins has isolated CPUs only",
        "The kernel does not spread threads over CPUs that it was booted with as isolcpus=: all "
        "threads of the VM may share one. libvirt 10.4 and later would give it the CPUs that are "
        "not isolated, and those are the host's.",
        "Pin each of its vCPUs to a CPU: virsh vcpupin DOMAIN VCPU CPU --live --config; or isolate "
        "fewer CPUs.",
    ),
    "core-split": Code(
        NOTE,
        "the host and VMs share a core",
        "A CPU is reserved, and its sibling, a thread of the same core (SMT), is a VM's. What the "
        "one does slows the other down, and may be watched from there.",
        "Reserve whole cores, as the message says; virt-cgroup map shows them.",
    ),
    "device-far": Code(
        NOTE,
        "a VM uses a PCI device of a NUMA node of which the host has no CPU",
        "Interrupts of the device and the host's work for it cross over to the node of the host's "
        "CPUs.",
        "Reserve a CPU of each node (auto does so where it takes more than one core), or use a "
        "device of the node of the host's CPUs.",
    ),
    # the hook
    "hook-missing": Code(
        FAIL,
        "the hook is not installed",
        "libvirt does not run it, so no VM is checked or placed when it starts. Limits that are "
        "set stay until somebody changes them.",
        "Run virt-cgroup hook install.",
    ),
    "hook-elsewhere": Code(
        FAIL,
        "the hook is where this libvirt does not look",
        "libvirt does not run it: it looks in the folder that it was built with. So no VM is "
        "checked or placed when it starts.",
        "Run virt-cgroup hook install.",
    ),
    "hook-left-elsewhere": Code(
        WARN,
        "the hook is also where this libvirt does not look",
        "One file has no effect, and is easily taken for the one that has.",
        "Run virt-cgroup hook install, which removes it.",
    ),
    "hook-twice": Code(
        WARN,
        "the hook is installed twice",
        "libvirt runs both for each operation of a VM, which takes twice as long.",
        "Remove the file that the message names.",
    ),
    "hook-not-executable": Code(
        FAIL,
        "the hook is not executable",
        "libvirt ignores it, and nothing is enforced.",
        "Run chmod 755 on it.",
    ),
    "hook-broken": Code(
        FAIL,
        "the hook does not find its package",
        "It does nothing then, so that VMs start all the same; nothing is enforced.",
        "Run virt-cgroup hook install, which has the Python that runs virt-cgroup run the hook; or "
        "install the package, and configobj, for the other.",
    ),
    "hook-not-seen": Code(
        WARN,
        "libvirt may not know the hook yet",
        "The daemon looks whether there is any hook when it starts and at SIGHUP, and remembers "
        "that.",
        "Run virt-cgroup hook reload, which sends it SIGHUP. VMs are not affected.",
    ),
    "daemon-stopped": Code(
        NOTE,
        "neither libvirtd nor virtqemud is running",
        "Without it no hook runs. Where a socket starts it, all is well.",
        "None is needed: it looks for hooks when it starts.",
    ),
    "hooks-no-directory": Code(
        FAIL,
        "a file is where the folder of hooks should be",
        "libvirt cannot read qemu.d, and each hook fails: no VM starts.",
        "Remove the file.",
    ),
    "hooks-unreadable": Code(
        WARN,
        "other users cannot read the folder of hooks",
        "Daemons of ordinary users (qemu:///session) read it, too, and do not start where they "
        "cannot.",
        "Run chmod 755 on the folder.",
    ),
    "hook-foreign": Code(
        NOTE,
        "libvirt runs a hook of another program, too",
        "If it fails, VMs do not start.",
        "None is needed if it is meant to be there.",
    ),
    "hook-recipe": Code(
        WARN,
        "a hook of another program sets CPUs that this one sets, too",
        "Recipes for isolating CPUs run systemctl set-property or cset, or write cpuset.cpus, when "
        "a VM starts or ends. Whoever comes last wins, and what is put back at the end opens the "
        "limit.",
        'Take these lines out: reserved_host_cpus, with confine_host = "running", does the same, '
        "and gives back what was there before. A shell takes no if, and no branch of a case, "
        "without a command: put : in their place, and see that sh -n accepts the script, since VMs "
        f"do not start if a hook fails. Then run {APPLY}.",
    ),
    "hook-leftover-runs": Code(
        WARN,
        "libvirt runs a file that was left over in the folder of hooks",
        "It runs all that is executable there, whatever its name: copies of packages and editors, "
        "too.",
        "Remove the file, or run chmod a-x on it.",
    ),
    "hook-leftover": Code(
        NOTE,
        "a file was left over in the folder of hooks",
        "libvirt does not run it as long as it is not executable.",
        "Remove it.",
    ),
    "selinux-denies": Code(
        WARN,
        "SELinux may keep the hook from writing",
        "Hooks of libvirt are confined by the policy, and what is denied is not enforced.",
        "Run setsebool -P virt_hooks_unconfined on.",
    ),
    "selinux-unknown": Code(
        NOTE,
        "it is not known what SELinux lets the hook do",
        "The policy has no boolean virt_hooks_unconfined.",
        "If VMs are not placed, see what is denied: ausearch -m avc.",
    ),
    "apparmor-denies": Code(
        FAIL,
        "AppArmor does not let libvirt run the hook",
        "The hook is a link to a file that libvirt's profile does not name, so it fails, and no VM "
        "starts.",
        "Install the file itself: remove the link, and run virt-cgroup hook install.",
    ),
    "apparmor-unknown": Code(
        NOTE,
        "it is not known what AppArmor lets the hook do",
        "Its profiles cannot be read.",
        "Mount securityfs on /sys/kernel/security.",
    ),
    # VMs
    "qemu-outside": Code(
        WARN,
        "QEMU runs outside the VM parent",
        "VMs of qemu:///session, of containers, and those started by hand have no limit, and may "
        "use what is reserved.",
        "Run it as a VM of qemu:///system, or treat it as part of the host.",
    ),
    "vm-unknown": Code(
        FAIL,
        "what libvirt keeps of a VM is not understood",
        "The VM is left as it is, and it is not known whether it is limited.",
        "Do what the message says; virsh dumpxml shows what libvirt knows.",
    ),
    "vm-settings": Code(
        FAIL,
        "a setting in the metadata of a running VM cannot be",
        "The VM runs without its own settings, and does not start again.",
        "Change or remove the setting, with the command that the message names.",
    ),
    "pins-in-the-way": Code(
        FAIL,
        "running VMs are pinned to CPUs that a new configuration reserves",
        "validate --config finds it before the file is in place. Afterwards those VMs would run on "
        "other CPUs than they are pinned to, or none would start, as the version of cgroups wants.",
        "Pin them to other CPUs (virsh vcpupin, emulatorpin, iothreadpin), or stop them. "
        "virt-cgroup reserve --force takes the CPUs all the same.",
    ),
    "vm-pinned-to-reserved": Code(
        WARN,
        "a running VM is pinned to CPUs that are reserved",
        "Its threads run on what is left of those CPUs, or on others, and not where they are "
        'pinned. It does not start again, unless pin_conflict is "warn".',
        "Do what the message says: pin the VM to CPUs of VMs, both as it runs and for its next "
        "start.",
    ),
    "vm-escaped": Code(
        FAIL,
        "no limit is above a VM, or its threads may run on CPUs that are not theirs",
        "They use what is reserved for the host, or the CPUs of others.",
        "Run virt-cgroup apply --all, and stop and start a VM that is in another slice.",
    ),
    "vm-misplaced": Code(
        WARN,
        "a VM is not where the configuration puts it",
        "It was started before the configuration changed, or somebody has moved it. The memory of "
        "one below an earlier VM parent is counted apart: VMs may have more together than they "
        "should.",
        "Run virt-cgroup apply --all, and stop and start a VM that is in another slice.",
    ),
    "vm-not-dedicated": Code(
        WARN,
        "a VM has other CPUs for itself than it asks for (dedicated)",
        "It was changed while it ran: its pins, or the setting in its metadata.",
        "Run virt-cgroup apply with the VM's name. If that cannot be, it says what is in the way.",
    ),
    "dedicated-with-host": Code(
        NOTE,
        "the host's own work may run on CPUs that one VM has for itself",
        "dedicated keeps other VMs off them. The scheduler still puts services and logins there.",
        'Set confine_host = "running", or "asked" and confine_host=yes in the VM\'s metadata.',
    ),
}


def explained(name: str) -> str:
    """What --explain says of the code NAME."""
    code = CODES[name]
    paragraphs = [
        f"{name}: {code.meaning} ({code.result})",
        f"Why it matters: {code.why}",
        f"What to do: {code.remedy}",
    ]
    return "\n\n".join(
        textwrap.fill(text, 80, break_long_words=False, break_on_hyphens=False)
        for text in paragraphs
    )
