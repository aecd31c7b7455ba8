"""The queue between the API and the workers: jobs, replies and heartbeats."""
