"""Between the API and the workers: jobs, and what is told about them."""
