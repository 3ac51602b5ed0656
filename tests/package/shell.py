"""An interactive bash or zsh on a terminal of its own, in which keys are pressed."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from pathlib import Path
from types import TracebackType

BASH = """\
PS1=
bind 'set bell-style none'
bind 'set enable-bracketed-paste off'
bind -x '"\\C-xs": printf "<<%s>>" "$READLINE_LINE"'
bind '"\\C-xa": insert-completions'
. /usr/share/bash-completion/bash_completion
. {folder}/virt-cgroup
"""
ZSH = """\
PS1=
unsetopt beep zle_bracketed_paste
zstyle ':completion:all-matches:*' completer _all_matches _complete
zstyle ':completion:all-matches:*' insert true
fpath=({folder} $fpath)
autoload -U compinit
compinit -u -D
show() {{ print -rn -- "<<$BUFFER>>" }}
zle -N show
zle -C all-matches complete-word _generic
bindkey -e
bindkey '^Xs' show
bindkey '^Xa' all-matches
"""
SETUP = {"bash": BASH, "zsh": ZSH}
PROGRAMS = {"bash": ("bash", "--norc", "--noprofile", "-i"), "zsh": ("zsh", "-f", "-i")}
TAB, ALL, SHOW, CLEAR = "\t", "\x18a", "\x18s", "\x15"
PATIENCE = 30  # seconds


class Shell:
    """Sources the completion in FOLDER, and then what SCRIPT says, in DIRECTORY."""

    def __init__(self, name: str, folder: Path, script: str, directory: Path) -> None:
        setup = directory.parent / f"{directory.name}.setup"
        setup.write_text(SETUP[name].format(folder=folder) + script)
        self._terminal, inner = os.openpty()
        environment = {"PATH": "/usr/bin:/bin", "TERM": "dumb", "LC_ALL": "C.UTF-8", "HOME": "/"}
        self._process = subprocess.Popen(
            PROGRAMS[name],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            cwd=directory,
            env=environment,
            start_new_session=True,
        )
        os.close(inner)
        self.run(f". {setup}")

    def __enter__(self) -> Shell:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)

    def tab(self, line: str) -> str:
        """What is on the line after the tabulator key."""
        return self._after(line + TAB)

    def all(self, line: str) -> list[str]:
        """All words that could complete LINE."""
        before, last = line.rsplit(" ", 1)
        text = self._after(line + ALL)
        words = re.findall(r"(?:\\.|\S)+", text.removeprefix(before))
        return [re.sub(r"\\(.)", r"\1", word) for word in words if word != last]

    def run(self, command: str) -> str:
        """What it prints."""
        self._press(f"printf '<''<'; {command}; printf '>''>\\n'\r")
        return self._marked()

    def _after(self, keys: str) -> str:
        self._press(keys + SHOW)
        line = self._marked()
        self._press(CLEAR)
        return line

    def _marked(self) -> str:
        return self._read(">>").partition("<<")[2].partition(">>")[0]

    def _press(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def _read(self, end: str) -> str:
        """What appears on the terminal until END."""
        deadline, text = time.monotonic() + PATIENCE, ""
        while end not in text:
            ready, _, _ = select.select([self._terminal], [], [], deadline - time.monotonic())
            assert ready, f"the shell has not answered: {text!r}"
            text += os.read(self._terminal, 65536).decode(errors="replace")
        return text
