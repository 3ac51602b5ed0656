"""The lab: whole hosts in QEMU for tests, what they are made of, and how to talk to one."""
