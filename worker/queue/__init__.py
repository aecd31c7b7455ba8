"""The worker's end of the queue: which jobs it takes, and how they end."""
