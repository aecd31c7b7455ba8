"""The HTTP server, built on aiohttp's connections, requests and bodies, including private names.

It knows nothing about images. The application passes in what it needs.
"""
