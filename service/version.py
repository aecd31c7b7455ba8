"""The version of Daguerre, from its installed package."""

from __future__ import annotations

from importlib.metadata import version

VERSION = version("daguerre")
