# SPDX-License-Identifier: LGPL-2.1-or-later
"""bash completion: commands and options from the parser, settings and their words from the table."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from commands import commands, metavar, options, positionals, takes_value

from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.layout import PRESETS
from libvirt_cgroup_hooks.settings import Setting

WORDS = (*PRESETS, "auto", "refuse", "warn")  # what a setting in quotes may be, besides lists, amounts and templates
DOMAINS = "$(virsh -q list --all --name 2>/dev/null)"
SCRIPT = """\
# bash completion for virt-cgroup; made from its own help, see packaging/generate

_virt_cgroup_setting() {
    case $1 in
@VALUES@
    *) COMPREPLY=($(compgen -S = -W "@KEYS@" -- "$1")); compopt -o nospace ;;
    esac
}

_virt_cgroup_value() {
    case $1 in
    words:*) COMPREPLY=($(compgen -W "${1#words:}" -- "$cur")) ;;
    DOMAIN) COMPREPLY=($(compgen -W "@DOMAINS@" -- "$cur")) ;;
    KEY) COMPREPLY=($(compgen -W "@KEYS@" -- "$cur")) ;;
    KEY=VALUE) _virt_cgroup_setting "$cur" ;;
    LAYOUT | TEMPLATE) COMPREPLY=($(compgen -W "@PRESETS@" -- "$cur")) ;;
    DIR) _filedir -d ;;
    *FILE | PATH) _filedir ;;
    esac
}

_virt_cgroup() {
    local cur prev words cword
    _init_completion -n = || return
    local command="" i place=0 skip="" options="" values="" positions=()
    for ((i = 1; i < cword; i++)); do
        if [[ $skip ]]; then
            skip=""
        elif [[ -z $command && ${words[i]} == --root ]]; then
            skip=1
        elif [[ ${words[i]} == -* ]]; then
            [[ " $values " == *" ${words[i]}:"* ]] && skip=1
        elif [[ -z $command ]]; then
            command=${words[i]}
            case $command in
@COMMANDS@
            esac
        else
            ((++place))
        fi
    done
    if [[ -z $command ]]; then
        options="@OPTIONS@"
        values="@VALUED@"
    fi
    local value
    for value in $values; do
        if [[ $prev == "${value%%:*}" ]]; then
            _virt_cgroup_value "${value#*:}"
            return
        fi
    done
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
    elif [[ -z $command ]]; then
        COMPREPLY=($(compgen -W "@NAMES@" -- "$cur"))
    elif ((place < ${#positions[@]})); then
        _virt_cgroup_value "${positions[place]%...}"
    elif ((${#positions[@]})) && [[ ${positions[-1]} == *... ]]; then
        _virt_cgroup_value "${positions[-1]%...}"
    fi
} &&
    complete -F _virt_cgroup virt-cgroup
"""


def bash(parser: argparse.ArgumentParser, table: Iterable[Setting]) -> str:
    table = list(table)
    found = commands(parser)
    parts = {
        "VALUES": "\n".join(_setting(setting) for setting in table),
        "KEYS": " ".join(setting.key for setting in table),
        "DOMAINS": DOMAINS,
        "PRESETS": " ".join(PRESETS),
        "COMMANDS": "\n".join(_command(name, command) for name, command in found.items()),
        "OPTIONS": _options(parser),
        "VALUED": _valued(parser),
        "NAMES": " ".join(found),
    }
    text = SCRIPT
    for name, value in parts.items():
        text = text.replace(f"@{name}@", value)
    return text


def _setting(setting: Setting) -> str:
    words = " ".join(word for word in WORDS if setting.example.startswith('"') and _takes(setting, word))
    return f'    {setting.key}=*) COMPREPLY=($(compgen -P "{setting.key}=" -W "{words}" -- "${{1#*=}}")) ;;'


def _takes(setting: Setting, word: str) -> bool:
    try:
        setting.read(word)
    except Error:
        return False
    return True


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    positions = " ".join(f'"{_kind(action)}"' for action in positionals(parser))
    return (
        f"            {name})\n"
        f'                options="{_options(parser)}"\n'
        f'                values="{_valued(parser)}"\n'
        f"                positions=({positions}) ;;"
    )


def _options(parser: argparse.ArgumentParser) -> str:
    return " ".join(name for action in options(parser) for name in action.option_strings)


def _valued(parser: argparse.ArgumentParser) -> str:
    """OPTION:WHAT for each option that takes a value."""
    return " ".join(
        f"{name}:{_kind(action).replace(' ', ',')}"
        for action in options(parser)
        if takes_value(action)
        for name in action.option_strings
    )


def _kind(action: argparse.Action) -> str:
    if action.choices:
        return "words:" + " ".join(map(str, action.choices))
    return metavar(action) + ("..." if action.nargs in ("*", "+") else "")
