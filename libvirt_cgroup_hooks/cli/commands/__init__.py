# SPDX-License-Identifier: LGPL-2.1-or-later
"""One module for each command, with `add(commands)`, which adds its parser."""
