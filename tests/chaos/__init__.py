"""Faults under load, run by `./run test --chaos`: whatever happens, every response that a client got stays true."""
