"""The files of deleted images, and accounts with all they hold."""
