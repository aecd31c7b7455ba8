"""The request handlers, one module for each resource."""
