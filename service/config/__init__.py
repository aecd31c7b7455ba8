"""What the operator sets: every setting, read from the environment and checked."""
