"""What an upload needs: PostgreSQL, Redis and the storage. Whether each works, and if not, why and for how long."""
