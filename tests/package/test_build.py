"""The packages: equal bytes from equal sources, what is in them, and what the linters say."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from libvirt_cgroup_hooks import __version__

from .conftest import ROOT, package, run

CONFIGURATION = "/etc/libvirt/cgroup-hooks.conf"
EVERYWHERE = (
    CONFIGURATION,
    "/usr/bin/virt-cgroup",
    "/usr/share/augeas/lenses/libvirt_cgroup_hooks.aug",
    "/usr/share/augeas/lenses/tests/test_libvirt_cgroup_hooks.aug",
    "/usr/share/bash-completion/completions/virt-cgroup",
    "/usr/share/libvirt-cgroup-hooks/alerts.yml",
    "/usr/share/libvirt-cgroup-hooks/libvirt-cgroup-hooks.json",
    "/usr/share/libvirt-cgroup-hooks/qemu",
    "/usr/share/man/man5/cgroup-hooks.conf.5.gz",
    "/usr/share/man/man8/virt-cgroup.8.gz",
)
UNITS = [
    f"libvirt-cgroup-hooks{name}"
    for name in (
        ".service",
        "-apply.service",
        "-changed.service",
        "-metrics.service",
        "-metrics.timer",
        "-threads.path",
    )
]
RULES = "udev/rules.d/90-libvirt-cgroup-hooks.rules"
PROGRAM = "udev/libvirt-cgroup-hooks"
PLACED = (".service", ".timer", ".path", ".rules", "libvirt-cgroup-hooks/libvirt-cgroup-hooks")


@pytest.mark.parametrize("kind", ["deb", "rpm", "wheel"])
def test_two_builds_are_equal(kind: str) -> None:
    sums = [
        {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in package(kind)}
        for _ in range(2)
    ]
    assert sums[0] == sums[1]


def deb_files(deb: Path) -> dict[str, str]:
    lines = [line.split(None, 5) for line in run("dpkg-deb", "-c", deb).splitlines()]
    return {line[5].removeprefix("."): line[0] for line in lines if not line[5].endswith("/")}


def test_the_files_of_the_deb(deb: Path) -> None:
    files = deb_files(deb)
    assert set(EVERYWHERE) < set(files)
    assert {f"/usr/lib/systemd/system/{unit}" for unit in UNITS} < set(files)
    assert f"/usr/lib/{RULES}" in files
    assert files[f"/usr/lib/{PROGRAM}"] == "-rwxr-xr-x"
    assert not [path for path in files if path.startswith("/lib")]  # a link to /usr/lib
    assert not [path for path in files if path.startswith("/usr/share") and path.endswith(PLACED)]
    assert "/usr/share/zsh/vendor-completions/_virt-cgroup" in files
    assert not [path for path in files if path.startswith("/etc/libvirt/hooks")]
    assert run("dpkg-deb", "-I", deb, "conffiles").split() == [CONFIGURATION]


def test_the_files_of_the_rpm(rpms: dict[str, Path]) -> None:
    files = run("rpm", "-qpl", rpms["first"]).split()
    assert set(EVERYWHERE) < set(files)
    assert {f"/usr/lib/systemd/system/{unit}" for unit in UNITS} < set(files)
    assert {f"/usr/lib/{name}" for name in (RULES, PROGRAM)} < set(files)
    assert not [path for path in files if path.startswith("/usr/share") and path.endswith(PLACED)]
    assert "/usr/share/zsh/site-functions/_virt-cgroup" in files
    assert not [path for path in files if path.startswith("/etc/libvirt/hooks")]
    flags = run(
        "rpm", "-qp", "--queryformat", r"[%{FILENAMES} %{FILEFLAGS:fflags}\n]", rpms["first"]
    )
    assert [line for line in flags.splitlines() if line.split()[1:] == ["cn"]] == [
        f"{CONFIGURATION} cn"
    ]


def test_the_documents_that_the_readme_links(deb: Path, rpms: dict[str, Path]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = {path for path in re.findall(r"\]\(([\w./-]+)", readme) if path != "NEWS.md"}
    for files in (deb_files(deb), run("rpm", "-qpl", rpms["first"]).split()):
        [there] = [path for path in files if path.endswith("/README.md")]
        assert {there.replace("README.md", path) for path in links} < set(files)


def test_what_is_off_until_it_is_enabled(deb: Path, rpms: dict[str, Path]) -> None:
    """On removal it is stopped, and what the metrics' timer has written goes."""
    timer, path = "libvirt-cgroup-hooks-metrics.timer", "libvirt-cgroup-hooks-threads.path"
    file = "libvirt-cgroup-hooks.prom"
    installed, removed = (run("dpkg-deb", "-I", deb, name) for name in ("postinst", "prerm"))
    for unit in (timer, path):
        assert f"\tif deb-systemd-helper debian-installed '{unit}'" in installed
        assert installed.count(f"enable '{unit}'") == 1
        assert f"deb-systemd-invoke stop '{unit}'" in removed
    left = run("dpkg-deb", "-I", deb, "postrm")
    assert f"rm -f /var/lib/prometheus/node-exporter/{file}" in left
    scripts = run("rpm", "-qp", "--scripts", rpms["first"])
    for text in (left, scripts):  # what has failed is not listed for ever
        assert "systemctl reset-failed 'libvirt-cgroup-hooks*'" in text
    services = "libvirt-cgroup-hooks.service libvirt-cgroup-hooks-apply.service"
    assert f"install-system-units {services} {timer} {path}" in scripts
    assert f"remove-system-units {services} {timer} {path}" in scripts
    assert file in run("rpm", "-qpl", rpms["first"])


def test_what_udev_asks_is_on(deb: Path) -> None:
    unit = "libvirt-cgroup-hooks-apply.service"
    installed = run("dpkg-deb", "-I", deb, "postinst")
    assert f"deb-systemd-helper --quiet was-enabled '{unit}'" in installed
    assert re.search(rf"deb-systemd-invoke \$_dh_action '{unit}'", installed)
    assert f"deb-systemd-invoke stop '{unit}'" in run("dpkg-deb", "-I", deb, "prerm")


def test_the_spec_file_has_the_version() -> None:
    spec = (ROOT / "packaging/rpm/libvirt-cgroup-hooks.spec").read_text()
    assert re.findall(r"^Version: *(.+)$", spec, re.MULTILINE) == [__version__]


def test_the_hook_is_as_in_the_source(deb: Path, tmp_path: Path) -> None:
    run("dpkg-deb", "-x", deb, tmp_path)
    assert (tmp_path / "usr/share/libvirt-cgroup-hooks/qemu").read_bytes() == (
        ROOT / "hooks/qemu"
    ).read_bytes()


def test_lintian(deb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(
        "lintian", "-EviI", "--pedantic", "--show-overrides", "--allow-root", deb, check=False
    )
    with capsys.disabled():
        print(f"\n== lintian -EviI --pedantic {deb.name}\n{said}")
    assert re.findall(r"^[EWIPX]: .*", said, re.MULTILINE) == []


def test_rpmlint(rpms: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    said = run(
        "rpmlint", "-c", "packaging/rpm/rpmlint.toml", rpms["first"], rpms["selinux"], check=False
    )
    with capsys.disabled():
        print(f"\n== rpmlint\n{said}")
    assert " 0 errors, 0 warnings, 0 badness" in said


@pytest.mark.parametrize("file", ["packaging/deb/lintian-overrides", "packaging/rpm/rpmlint.toml"])
def test_every_exception_says_why(file: str) -> None:
    """Each override and filter follows a comment, or another of the same reason."""
    before = ""
    for line in map(str.lstrip, (ROOT / file).read_text().splitlines()):
        if line.startswith(("libvirt-cgroup-hooks:", '"')):
            assert before.startswith(("#", "libvirt-cgroup-hooks:", '"'))
        before = line


def test_the_program_of_udev() -> None:
    assert run("shellcheck", "packaging/udev/libvirt-cgroup-hooks", check=False) == ""
