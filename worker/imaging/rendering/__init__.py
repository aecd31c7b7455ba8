"""A rendition of a stored picture: loaded no larger than needed, its pixels put where they belong, encoded."""

from worker.imaging.rendering.render import render

__all__ = ["render"]
