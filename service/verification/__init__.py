"""`daguerre verify`, and the check at start-up that database and storage belong together."""
