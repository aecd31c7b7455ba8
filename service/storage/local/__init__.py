"""Originals and renditions as files of a local or mounted disk."""
