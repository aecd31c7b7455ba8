"""The HTTP server: what is built on aiohttp's connections, requests and bodies, private names included.

It knows nothing of images. What it needs from the application is passed in.
"""
