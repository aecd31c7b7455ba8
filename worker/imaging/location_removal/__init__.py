"""Finds locations in the metadata of a picture, and blanks them in a private copy of the file.

Each container has a module that finds its metadata. `blocks` handles EXIF, IPTC and Photoshop's image resources, and
`xmp` XMP, which several containers have. `Copy` in `regions` collects the changes as patches.
"""
