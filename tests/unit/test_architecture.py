"""Which module may use which, and what the hook loads: both decide how fast a VM starts."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import snapshot, state
from libvirt_cgroup_hooks.managers import ACTIVATION

from .support.hosts import DATA, Kernel

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "libvirt_cgroup_hooks"
PURE = (
    "admission cgroups config configfile cpuset domain domainxml errors fence kinds layout "
    "memory own_settings settings topology virconf managers.units"
).split()
FORMULAS = "counts cpu memory parsing rules".split()  # of cli.recommend
EFFECTS = (
    "bus cli conformance hook host kernel leave limits managers operations plan reserve snapshot "
    "state steps threads"
).split()
OUTSIDE = (
    "asyncio io logging multiprocessing os pathlib shutil signal socket subprocess sys syslog "
    "tempfile threading time"
).split()
THIRD = {"configobj": "configfile", "validate": "configfile", "libvirt": "cli", "lxml": "cli"}


def modules() -> list[str]:
    paths = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted(".".join(path.parts).removesuffix("__init__").removesuffix(".") for path in paths)


def imports(module: str) -> set[str]:
    """Absolute names of what MODULE imports anywhere in it, but for type checking."""
    path = PACKAGE.joinpath(*module.split(".")) if module else PACKAGE
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.If)
            and isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
        ):
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
        elif isinstance(node, ast.ImportFrom):
            base = [
                *package[: len(package) - node.level + 1],
                *([node.module] if node.module else []),
            ]
            found.update(
                "." + ".".join([*base, *([] if node.module else [alias.name])])
                for alias in node.names
            )
    return found


def top(name: str) -> str:
    return name.lstrip(".").partition(".")[0]


def test_all_modules_are_found() -> None:
    assert set(PURE) < set(modules())
    assert ".errors" in imports("cpuset")
    assert ".cpuset" in imports("managers.base")
    assert {".kernel", ".state"} <= imports("managers.base")


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_do_nothing(module: str) -> None:
    used = imports(module)
    assert {name for name in used if not name.startswith(".")} & set(OUTSIDE) == set()
    assert {top(name) for name in used if name.startswith(".")} & set(EFFECTS) == set()


@pytest.mark.parametrize("module", FORMULAS)
def test_formulas_do_nothing(module: str) -> None:
    used = imports(f"cli.recommend.{module}")
    inside = {name.removeprefix(".cli.recommend.") for name in used if name.startswith(".cli")}
    assert inside <= set(FORMULAS)
    assert {name for name in used if not name.startswith(".")} & set(OUTSIDE) == set()
    assert {top(name) for name in used if name.startswith(".")} & set(EFFECTS) <= {"cli"}


@pytest.mark.parametrize(
    "module", [name for name in modules() if not name.startswith("cli") and name != "__main__"]
)
def test_only_the_command_line_imports_the_command_line(module: str) -> None:
    assert "cli" not in {top(name) for name in imports(module) if name.startswith(".")}


@pytest.mark.parametrize("module", modules())
def test_who_may_use_other_projects(module: str) -> None:
    for name in imports(module):
        if top(name) in THIRD and not name.startswith("."):
            assert THIRD[top(name)] in (module, module.partition(".")[0]), (
                f"{module} imports {name}"
            )
        elif sys.version_info >= (3, 10):
            assert name.startswith(".") or top(name) in sys.stdlib_module_names


def test_nothing_but_the_door_opens_files() -> None:
    """The kernel is called by the door to it, by bpf(2) (kernel.devices), by the hook for its own
    descriptors, and by the command line.
    """
    users = {
        module
        for module in modules()
        if imports(module) & {"os", "posix"} and not module.startswith("cli")
    }
    assert users == {"host", "kernel.devices", "hook"}
    assert [module for module in modules() if imports(module) & {"socket", "_socket"}] == ["bus"]
    assert [module for module in modules() if "subprocess" in imports(module)] == []


PROGRAMS = ("tools/bench", "tools/fuzz", "tools/lab", "tools/private-host")
FOLDERS = ("libvirt_cgroup_hooks", "packaging", "tests", "tools")


@pytest.mark.parametrize("folder", FOLDERS)
def test_conditional_expressions_are_plain(folder: str) -> None:
    """None is inside another, and no loop goes through one, which ruff cannot check."""
    programs = [ROOT / name for name in PROGRAMS if name.startswith(folder)]
    for file in [*(ROOT / folder).rglob("*.py"), *programs]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            inside: list[ast.AST] = []
            if isinstance(node, ast.IfExp):
                inside = [one for one in ast.walk(node) if one is not node]
            elif isinstance(node, (ast.For, ast.comprehension)):
                inside = [node.iter]
            found = [one.lineno for one in inside if isinstance(one, ast.IfExp)]
            assert not found, f"{file}:{found[0]}"


def contracts() -> dict[str, list[str]]:
    """The layers of each contract in setup.cfg, from top to bottom, by package."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    names = [name for name in parser if name.startswith("importlinter:contract:")]
    return {
        parser[name]["containers"].strip(): parser[name]["layers"].split("\n")[1:] for name in names
    }


def picture(readme: Path) -> str:
    """The block of README that names the layers."""
    return readme.read_text(encoding="utf-8").split("```\n")[1]


@pytest.mark.parametrize(("package", "layers"), contracts().items())
def test_the_documents_show_the_layers_of_the_contract(package: str, layers: list[str]) -> None:
    shown = picture(ROOT.joinpath(*package.split("."), "README.md"))
    names = [re.split("  +", line)[0] for line in shown.splitlines()]
    assert [name for name in names if name] == layers
    assert shown in (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def test_every_package_with_layers_has_a_contract() -> None:
    assert set(contracts()) == {
        ".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("README.md")
    }


STEADY = """
import sys
before = set(sys.modules)
root, copy, operation, xml = sys.argv[1:]
sys.path.insert(0, root)
from libvirt_cgroup_hooks import hook, idle, operations, snapshot, state
from libvirt_cgroup_hooks.host import Host
host = Host(copy)
config = snapshot.load(host, [], save=True)
assert config
if not idle.never(host, config, operation):
    from libvirt_cgroup_hooks.domainxml import parse
    domain = parse(open(xml, "rb").read())
    with host.locked(state.LOCK):
        print(operations.plan(host, config, operation, domain, imagine=True), file=sys.stderr)
import gc
assert not gc.isenabled()
print("\\n".join(sorted(set(sys.modules) - before)))
"""
ALLOWED = set(
    "__future__ _signal errno fcntl gc posix pyexpat pyexpat.errors pyexpat.model sys time".split()
)
HEAVY = (
    "argparse collections configobj ctypes dataclasses json libvirt logging lxml os re subprocess "
    "syslog typing"
).split()
ALWAYS = (
    "cgroups config cpuset errors fence hook host idle kinds layout managers memory operations "
    "plan snapshot state steps"
).split()
PLANNING = ["domain", "domainxml", "kernel", "kernel.tree", "managers.base"]
CGROUPFS = [*ALWAYS, *PLANNING, "managers.cgroupfs"]
SYSTEMD = [*ALWAYS, *PLANNING, "managers.systemd", "managers.units"]
MACHINED = ("run/dbus/system_bus_socket", "run/systemd/system/x", "usr/share/" + ACTIVATION)


def loaded_at(
    operation: str, host: str, folder: Path, machined: bool = False, with_net_cls: bool = False
) -> set[str]:
    """The modules that a run of the hook loads when the configuration has been compiled."""
    copy = Kernel(folder, host, "reserved_host_cpus = '0'\ncgroup_layout = '/vms/$NAME'\n")
    if with_net_cls:
        at = "/sys/fs/cgroup/net_cls"
        copy.put("/proc/mounts", copy.get("/proc/mounts") + f"\ncgroup {at} cgroup rw,net_cls 0 0")
        copy.put("/proc/self/cgroup", copy.get("/proc/self/cgroup") + "\n1:net_cls:/")
        copy.put(f"{at}/tasks", "")
    if machined:
        for path in MACHINED:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
    state.prepare_directory(copy)
    snapshot.load(copy, [], save=True)
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        STEADY,
        str(ROOT),
        copy.root,
        operation,
        str(DATA / "domains/status.xml"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert operation != "prepare" or "vms" in done.stderr
    return set(done.stdout.split())


def ours(found: set[str]) -> set[str]:
    return {name.partition(".")[2] for name in found if name.startswith("libvirt_cgroup_hooks.")}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    return loaded_at("prepare", "v2", tmp_path_factory.mktemp("host"))


@pytest.mark.runs_programs
def test_a_run_of_the_hook_loads_little(loaded: set[str]) -> None:
    others = {name for name in loaded if not name.startswith("libvirt_cgroup_hooks")}
    assert others - ALLOWED == set()


@pytest.mark.runs_programs
@pytest.mark.parametrize("name", HEAVY)
def test_a_run_of_the_hook_does_not_load(loaded: set[str], name: str) -> None:
    assert name not in loaded


@pytest.mark.runs_programs
@pytest.mark.parametrize(
    ("operation", "host", "machined", "expected"),
    [
        *(
            (operation, "v1", False, [*CGROUPFS, "kernel.v1"])
            for operation in ("prepare", "release")
        ),
        ("started", "v1", False, [*CGROUPFS, "kernel.v1", "limits", "threads"]),
        *(
            (operation, "v2", False, [*CGROUPFS, "kernel.v2"])
            for operation in ("prepare", "release")
        ),
        *(
            (operation, "v2", True, [*SYSTEMD, "kernel.v2"])
            for operation in ("prepare", "start", "release")
        ),
        ("started", "v2", True, [*SYSTEMD, "kernel.v2", "limits", "threads"]),
        *((operation, "v1", True, [*SYSTEMD, "kernel.v1"]) for operation in ("prepare", "start")),
        ("start", "v2", False, ALWAYS),
        ("stopped", "v2", True, ALWAYS),
    ],
)
def test_budget_of_modules(
    tmp_path: Path, operation: str, host: str, machined: bool, expected: list[str]
) -> None:
    """Each costs a run of the hook about 0.2 ms, where a bare interpreter takes 10."""
    # the VM has pins, and it is the first, so the VM parent gets its limits
    first = {"admission", "conformance", "limits", "managers.units", "threads"}
    more = first if operation == "prepare" else set()
    if machined and operation in ("prepare", "started"):
        more = {*more, "managers.unitfiles"}  # the limits are not there yet
        if host == "v2":
            more.add("managers.properties")
    if machined and operation in ("prepare", "start"):
        more = {*more, "managers.dropins", "managers.slices"}
    assert ours(loaded_at(operation, host, tmp_path, machined)) == {*expected, *more}


@pytest.mark.runs_programs
def test_both_versions_are_loaded_where_both_hold_vms(tmp_path: Path) -> None:
    expected = {*CGROUPFS, "kernel.v1", "kernel.v2"}
    assert ours(loaded_at("release", "v2", tmp_path, with_net_cls=True)) == expected
