"""The worker: takes jobs from the queue and runs libvips in child processes."""
