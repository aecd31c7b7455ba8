"""The worker's side of the queue: which jobs it claims, and how they finish."""
