"""`daguerre verify`, and the check at a start that database and storage belong together."""
