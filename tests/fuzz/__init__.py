"""Inputs that nobody thought of: mutated pictures, and requests out of any shape."""
