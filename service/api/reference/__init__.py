"""The API reference at `/docs`: the page, its script and style, and the component that renders it."""
