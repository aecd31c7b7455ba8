"""Images as pages embed them: raw, or as renditions made to a URL's parameters."""
