"""From a body to an image: the file, its row, its job and the reply."""
