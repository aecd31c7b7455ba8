"""The worker: claims jobs from the queue, and runs libvips in decoder processes."""
