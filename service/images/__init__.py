"""Images: their rows, and every statement that reads or changes them."""
