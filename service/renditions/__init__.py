"""Renditions: their parameters, and how one is made, stored and found again."""
