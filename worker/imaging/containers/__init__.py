"""Parsers of file structures that several modules need. They never decode pixels."""
