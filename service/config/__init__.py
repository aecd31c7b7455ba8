"""The operator's settings: read from the environment, parsed and checked."""
