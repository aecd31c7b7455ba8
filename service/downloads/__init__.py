"""Downloads of pictures from clients' URLs."""
