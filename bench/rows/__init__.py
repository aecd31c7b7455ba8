"""What `./run bench` measures, one module a row of the README's table."""
