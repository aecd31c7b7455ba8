"""Removes the files of deleted images, and accounts with everything that they store."""
