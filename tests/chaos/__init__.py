"""Faults under load, run by `./run test --chaos`. Every response that a client got must still hold after the fault."""
