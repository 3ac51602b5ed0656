# SPDX-License-Identifier: LGPL-2.1-or-later
# Stands inside what shtab makes of the parser.

_virt_cgroup_domains() {
  local -a names=(${(f)"$(_virt_cgroup_list --all)"})
  compadd "$@" -a names
}

_virt_cgroup_running() {
  local -a names=(${(f)"$(_virt_cgroup_list)"})
  compadd "$@" -a names
}

_virt_cgroup_list() {
  virsh --quiet --readonly --connect ${LIBVIRT_DEFAULT_URI:-qemu:///system} \
    list --name "$@" 2>/dev/null
}

# KEY=VALUE
_virt_cgroup_setting() {
  if compset -P 'layout='; then
    compadd "$@" -- @LAYOUTS@
  elif ! compset -P '*='; then
    compadd "$@" -S = -- @SETTINGS@
  fi
}
