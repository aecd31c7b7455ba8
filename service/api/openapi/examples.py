"""The example responses of the original API's documentation."""

from __future__ import annotations

from typing import Any

TAGS = ["animal", "dog", "pet", "four_legs"]
SOURCE_URL = "https://upload.wikimedia.org/wikipedia/commons/6/65/Tesla_Model_S_Indoors.jpg"


def success(response: Any) -> dict[str, Any]:
    return {"success": True, "response": response}


def image(tags: list[str] | None = None) -> dict[str, Any]:
    return {"id": "NKrigl4", "width": 5054, "height": 3369, "filesize": 3369, "tags": tags or []}


PROCESSING = {"id": "NKrigl4", "status": "processing", "filesize": 3369, "tags": []}

ACCOUNT = {
    "num_images": 42,
    "storage": {
        "max": 2147483648,
        "max_readable": "2 GB",
        "used": 112332108,
        "used_readable": "107 MB",
        "remaining": 2035151540,
        "remaining_readable": "1.9 GB",
    },
}
