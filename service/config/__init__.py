"""The operator's settings, which are read from the environment, parsed and checked."""
