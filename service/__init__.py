"""The image service: domain modules, and the HTTP API in `service.api`."""
