"""The steps of a rendition: frames of the wanted size, effects, a watermark, metadata, encoding."""
