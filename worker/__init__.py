"""The worker: claims jobs from the queue, and processes pictures in decoder processes."""
