"""The OpenAPI document: written from the classes, limits and error codes that the handlers work with."""
