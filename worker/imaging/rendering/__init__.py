"""The steps of a rendition: frames of the requested size, effects, watermark, metadata, encoding."""
