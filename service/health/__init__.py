"""Whether the dependencies work, and how full they are."""
