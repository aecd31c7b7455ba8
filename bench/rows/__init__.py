"""What `./run bench` measures: one module for each row."""
