# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# Follows what shtab makes of the parser, and calls it.

_virt_cgroup_domains() {
    _virt_cgroup_beginning "$1" < <(_virt_cgroup_list --all)
}

_virt_cgroup_running() {
    _virt_cgroup_beginning "$1" < <(_virt_cgroup_list)
}

_virt_cgroup_list() {
    virsh --quiet --readonly --connect "${LIBVIRT_DEFAULT_URI:-qemu:///system}" \
        list --name "$@" 2>/dev/null
}

# The lines that begin with $1. Not compgen -W, which would run a $(command) in a VM's name.
_virt_cgroup_beginning() {
    local line
    while IFS= read -r line; do
        [[ -n $line && $line == "$1"* ]] && printf '%s\n' "$line"
    done
}

# KEY=VALUE. readline replaces only what follows "=".
_virt_cgroup_setting() {
    local IFS=" "
    case $1 in
    layout=*) compgen -W "@LAYOUTS@" -- "${1#*=}" ;;
    *=*) ;;
    *) compgen -S = -W "@SETTINGS@" -- "$1" ;;
    esac
}

_virt_cgroup() {
    # shellcheck disable=SC2034 # prev is for _init_completion
    local cur prev words cword
    _init_completion -n =: || return
    # bash has split the words at "=" and ":"; shtab gets them whole.
    local COMP_WORDS=("${words[@]}") COMP_CWORD=$cword
    # shtab 1.5 (Debian 12) would leave these behind in the user's shell.
    # shellcheck disable=SC2034
    local prefix word_index sub_parsers current_option_strings completed_positional_actions \
        current_action current_action_compgen current_action_choices current_action_nargs \
        current_action_args_start_index current_action_is_positional
    _shtab_virt_cgroup
    # And it offers only the first of several choices.
    if [[ -n $current_action && $cur != -* ]]; then
        local choices="${current_action}_choices[*]"
        mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -W "${!choices-}" -- "$cur")
    fi
    if [[ ${COMPREPLY[0]} == *= ]]; then
        compopt -o nospace +o filenames # the "=" of a file name would be quoted
    fi
    __ltrim_colon_completions "$cur"
} && complete -o filenames -F _virt_cgroup virt-cgroup
