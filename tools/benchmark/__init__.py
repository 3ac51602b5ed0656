"""What tools/bench measures, and how.

tools/bench imports `command` from here. It starts `measure` on the host that is measured, from the
source tree's folder, so that the tests' harness and the hook's own modules are found there.
"""
