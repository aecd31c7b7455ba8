"""How often something may be done."""
