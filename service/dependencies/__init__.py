"""The dependencies of an upload (PostgreSQL, Redis and the storage): their outages, error reasons and versions."""
