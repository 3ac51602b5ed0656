"""The Ansible collection: its variables are those of the settings table, and what the role writes
means what they say.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import __version__, configfile, settings

from .conftest import ROOT, run

COLLECTION = ROOT / "packaging/ansible"
ROLE = COLLECTION / "roles/cgroup_hooks"
NAME = "libvirt_cgroup_hooks.host"
PROGRAMS = Path(sys.executable).parent  # pip installs beside it
TOGETHER = {  # with what they need
    "reserved_host_cpus": "0-1",
    "reserved_host_mem": "4 GiB",
    "cgroup_layout": "/vms/$DRIVER-$UUID",
    "emulator_cpus": 2,
    "vcpu_cpus": "4-15",
    "iothread_cpus": "2,3",
    "pin_conflict": "warn",
    "memory_admission": "1",
    "hook_timeout": "20",
    "on_error": "warn",
    "confine_host": "running",
    "host_units": ["system.slice", "b.slice"],
    "host_cpus_for": "emulator, iothread",
    "vm_swap_max": 0,
    "protect_host_mem": "min",
    "vm_cpu_weight": 50,
}
MEANT = {
    **TOGETHER,
    "emulator_cpus": "2",
    "iothread_cpus": "2-3",
    "reserved_host_mem": str(4 << 30),
    "host_units": "system.slice b.slice",
    "host_cpus_for": "emulator iothread",
    "vm_swap_max": "0",
    "vm_cpu_weight": "50",
}


def ansible(program: str, folder: Path, *arguments: str | Path) -> tuple[int, str]:
    """The exit status of one of Ansible's PROGRAMS in FOLDER, and what it prints."""
    environment = {
        "PATH": f"{PROGRAMS}:/usr/bin:/bin",
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_COLLECTIONS_PATH": str(folder),
    }
    done = subprocess.run(
        [PROGRAMS / program, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the collection as Galaxy would hand it out."""
    folder = tmp_path_factory.mktemp("ansible")
    status, said = ansible("ansible-galaxy", folder, "collection", "build", COLLECTION)
    assert status == 0, said
    archive = folder / f"{NAME.replace('.', '-')}-{__version__}.tar.gz"
    arguments = ("collection", "install", "--offline", "-p", folder, archive)
    status, said = ansible("ansible-galaxy", folder, *arguments)
    assert status == 0, said
    return folder


def play(installed: Path, tasks: object, variables: dict[str, object]) -> tuple[int, str]:
    """This machine is the host, in check mode."""
    playbook = installed / "play.yml"
    head = {"hosts": "localhost", "connection": "local", "gather_facts": False}
    playbook.write_text(json.dumps([{**head, "tasks": tasks}]))
    given = {f"cgroup_hooks_{key}": value for key, value in variables.items()}
    arguments = ("--check", "--extra-vars", json.dumps(given), playbook)
    return ansible("ansible-playbook", installed, *arguments)


# what is made from the settings


def test_the_variables_are_those_of_the_settings(tmp_path: Path) -> None:
    run("/usr/bin/python3", "packaging/generate/role.py", tmp_path)
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(made) == 2
    for path in made:
        assert path.read_text() == (ROLE / path.relative_to(tmp_path)).read_text(), path


def test_each_choice_is_one() -> None:
    for setting in settings.TABLE:
        for choice in setting.choices:
            if setting.example.startswith("["):
                assert setting.read([choice]) == choice
            else:
                assert setting.read(int(choice) if choice.isdigit() else choice) == choice
        assert not setting.choices or setting.default in (*setting.choices, "")


def test_the_version() -> None:
    assert f"\nversion: {__version__}\n" in (COLLECTION / "galaxy.yml").read_text()


def test_ansible_doc_knows_every_setting(installed: Path) -> None:
    role = f"{NAME}.cgroup_hooks"
    status, said = ansible("ansible-doc", installed, "--json", "--type", "role", role)
    assert status == 0, said
    options = json.loads(said[said.index("{") :])[role]["entry_points"]["main"]["options"]
    for setting in settings.TABLE:
        option = options[f"cgroup_hooks_{setting.key}"]
        assert option["description"]
        assert [str(choice) for choice in option.get("choices", [])] == list(setting.choices)
        default = option.get("default", "")
        shown = " ".join(default) if isinstance(default, list) else str(default)
        assert shown == setting.default


def test_ansible_lint_is_content(tmp_path: Path) -> None:
    """With all that Galaxy asks for, but the address of a repository."""
    folder = tmp_path / "ansible_collections" / NAME.replace(".", "/")
    shutil.copytree(COLLECTION, folder)
    strict = ("--offline", "--strict", "--profile", "production", "-x", "galaxy[no-repository]")
    status, said = ansible("ansible-lint", folder, *strict)
    assert status == 0, said
    assert "Passed: 0 failure(s), 0 warning(s)" in said


# what the role writes


def written(installed: Path, variables: dict[str, object]) -> str:
    role = installed / "ansible_collections" / NAME.replace(".", "/") / "roles/cgroup_hooks"
    file = installed / "cgroup-hooks.conf"
    template = {"src": str(role / "templates/cgroup-hooks.conf.j2"), "dest": str(file)}
    task: dict[str, object] = {"ansible.builtin.template": template, "check_mode": False}
    load = {"ansible.builtin.include_vars": str(role / "vars/main.yml")}
    status, said = play(installed, [load, task], variables)
    assert status == 0, said
    return file.read_text()


def test_every_setting_is_written(installed: Path) -> None:
    assert list(TOGETHER) == [setting.key for setting in settings.TABLE]
    text = written(installed, dict(TOGETHER))
    assert configfile.parse(text).values == MEANT


def test_what_is_not_set_is_left_out(installed: Path) -> None:
    text = written(installed, {"on_error": "", "host_units": [], "vm_swap_max": None})
    assert configfile.inert(text)


def test_a_count_of_cpus_and_a_no_of_yaml(installed: Path) -> None:
    text = written(installed, {"reserved_host_cpus": 2, "confine_host": False})
    assert configfile.parse(text).values == {"reserved_host_cpus": "count 2", "confine_host": "no"}


def test_a_host_that_has_the_package_from_elsewhere(installed: Path) -> None:
    role = {"ansible.builtin.import_role": {"name": f"{NAME}.cgroup_hooks"}}
    variables: dict[str, object] = {"packages": [], "reserved_host_cpus": "0"}
    status, said = play(installed, [role], variables)
    assert status == 0, said
    assert "changed: [localhost]" in said.partition(" : Write the configuration]")[2]
    assert "changed=1 " in said


# what the role refuses before it looks at the host


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        (
            {"pin_conflict": "ask"},
            "value of cgroup_hooks_pin_conflict must be one of: refuse, warn",
        ),
        ({"hook_timeout": "soon"}, "argument 'cgroup_hooks_hook_timeout' is of type"),
        ({"host_cpus_for": ["vcpu"]}, "value of cgroup_hooks_host_cpus_for must be one or more of"),
        ({"reserved_cpus": "0-1"}, "There is no variable cgroup_hooks_reserved_cpus; there are"),
        ({"apply": "later"}, "value of cgroup_hooks_apply must be one of: live, next_start"),
    ],
)
def test_a_wrong_variable(installed: Path, variables: dict[str, object], told: str) -> None:
    role = {"ansible.builtin.import_role": {"name": f"{NAME}.cgroup_hooks"}}
    status, said = play(installed, [role], variables)
    assert status != 0
    assert told in " ".join(said.split())
    assert "Install" not in said
    assert "changed=0" in said
