"""The tables: creating them in a new database, and bringing older ones to the same shape step by step."""
