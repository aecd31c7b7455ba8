"""The handlers, by what they serve."""
