"""The image service: domain modules, and its HTTP face in `service.api`."""
