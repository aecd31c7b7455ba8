"""The dependencies of an upload, i.e. PostgreSQL, Redis and the storage: their outages, reasons and versions."""
