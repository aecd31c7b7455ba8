"""The OpenAPI document, generated from the classes, limits and error codes that the handlers use."""
