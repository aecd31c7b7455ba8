"""Pictures that come from a URL."""
