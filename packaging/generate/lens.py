# SPDX-License-Identifier: LGPL-2.1-or-later
"""The augeas lens for cgroup-hooks.conf, and its test, which is the sample file.

    augtool set /files/etc/libvirt/cgroup-hooks.conf/reserved_host_cpus 0-1

writes reserved_host_cpus = "0-1", and a count of CPUs without quotes. Where both are allowed,
digits in quotes keep their quotes in augeas' tree, which could not tell them apart otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable

from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.settings import Setting

LENS = r"""(* /etc/libvirt/cgroup-hooks.conf; made from the settings, see packaging/generate *)
module Libvirt_cgroup_hooks =
  autoload xfm

  let eol = del /[ \t]*\r?\n/ "\n"
  let indent = del /[ \t]*/ ""
  let equals = del /[ \t]*=[ \t]*/ " = "
  let quote = del /["']/ "\""

  let number = store /[0-9]+/
  let text = square quote (store /[^"'\r\n]*/) quote
  (* where a number is allowed too *)
  let not_digits = /[^"'0-9\r\n][^"'\r\n]*|[0-9]+[^"'0-9\r\n][^"'\r\n]*/
  let words = square quote (store not_digits) quote
  let digits = store /"[0-9]+"|'[0-9]+'/
  let element = [ seq "el" . text ]
  let list = counter "el" . del /\[[ \t]*/ "[" . element
           . ( del /[ \t]*,[ \t]*/ ", " . element )* . del /[ \t]*\]/ "]"

  let prose = store /[^ \t\r\n]([^\r\n]*[^ \t\r\n])?/
  let trailing = [ label "#comment" . del /[ \t]*#[ \t]*/ " # " . prose ]
  let value (keys:regexp) (body:lens) = [ indent . key keys . equals . body . trailing? . eol ]

  let comment = [ label "#comment" . del /[ \t]*#[ \t]*/ "# " . prose . eol ]
  let empty = [ del /[ \t]*#?[ \t]*\r?\n/ "\n" ]

@ENTRIES@

  let lns = ( @NAMES@comment | empty )*

  let filter = incl "/etc/libvirt/cgroup-hooks.conf"
             . Util.stdexcl

  let xfm = transform lns filter
"""
KINDS = {
    "number": ("number",),
    "text": ("text",),
    "both": ("number", "digits", "words"),
    "list": ("list",),
}


def kind(setting: Setting) -> str:
    """Either "list", "number", "text" or "both": what the file may say without quotes and with
    them.
    """
    if setting.example.startswith("["):
        return "list"
    if not (_takes(setting, 0) or _takes(setting, 1)):
        return "text"
    is_text = setting.example.startswith('"') or _takes(setting, "1%")
    return "both" if is_text else "number"


def _takes(setting: Setting, value: int | str) -> bool:
    try:
        setting.read(value)
    except Error:
        return False
    return True


def lens(table: Iterable[Setting]) -> str:
    keys: dict[str, list[str]] = {}
    for setting in table:
        keys.setdefault(kind(setting), []).append(setting.key)
    entries = [
        f"  let {name}_entry = "
        + " | ".join(f"value /{'|'.join(found)}/ {body}" for body in KINDS[name])
        for name, found in keys.items()
    ]
    names = "".join(f"{name}_entry | " for name in keys)
    return LENS.replace("@ENTRIES@", "\n".join(entries)).replace("@NAMES@", names)


def test(table: Iterable[Setting], sample: str) -> str:
    """The sample as it is and with every setting made active, read and compared; and one setting
    written.
    """
    table = list(table)
    active = sample
    for setting in table:
        active = active.replace(f"#{setting.key} = ", f"{setting.key} = ")
    keys = "|".join(setting.key for setting in table)
    changed = _written("reserved_host_cpus", "0-1", True) + _written("hook_timeout", "5", False)
    return (
        "(* made from the sample file, see packaging/generate *)\n"
        "module Test_libvirt_cgroup_hooks =\n"
        f"  let sample = {_quoted(sample)}\n"
        f"  let active = {_quoted(active)}\n\n"
        f"  test Libvirt_cgroup_hooks.lns get sample = {_tree(sample, '')}\n\n"
        f"  test Libvirt_cgroup_hooks.lns get active = {_tree(active, keys)}\n\n"
        "  test Libvirt_cgroup_hooks.lns put sample after\n"
        '    set "reserved_host_cpus" "0-1"; set "hook_timeout" "5" =\n'
        f"    {_quoted(sample + changed)}\n"
    )


def _written(key: str, value: str, quotes: bool) -> str:
    return f'{key} = "{value}"\n' if quotes else f"{key} = {value}\n"


def _tree(text: str, keys: str) -> str:
    lines = []
    for line in text.splitlines():
        key, separator, value = line.partition(" = ")
        if separator and key in keys.split("|"):
            lines.append(f"    {{ {_quoted(key)} {_node(value)} }}")
        elif line.strip("# "):
            lines.append(f'    {{ "#comment" = {_quoted(line.removeprefix("#").strip())} }}')
        else:
            lines.append("    { }")
    return "\n" + "\n".join(lines)


def _node(value: str) -> str:
    """The tree of VALUE below its key."""
    if not value.startswith("["):
        return "= " + _quoted(value.strip('"'))
    elements = [element.strip(' "') for element in value.strip("[]").split(",")]
    return " ".join(f'{{ "{n}" = {_quoted(text)} }}' for n, text in enumerate(elements, 1))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
