"""What `./run bench` measures, one module a row of its table."""
