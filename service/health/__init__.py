"""Checks of the dependencies, and the space that they use."""
