"""Images: the row of each, and every statement that touches them."""
