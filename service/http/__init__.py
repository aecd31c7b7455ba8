"""The HTTP server: the one package that leans on aiohttp's private parts."""
