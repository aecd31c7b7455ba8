"""Faults under load, run by `./run test --chaos`: whatever happens, what clients were told holds."""
