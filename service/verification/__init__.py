"""`daguerre verify`."""
