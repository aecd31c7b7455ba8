"""The errors of the API: each with a stable code, a status, and a sentence that says what is wrong and what to do."""

from __future__ import annotations


class ServiceError(Exception):
    """An error in a response. Errors with equal codes are of the same kind.

    `message` is the sentence for the client: `detail` if it is set, or the default of the catalogue.
    """

    def __init__(self, code: str, message: str | None = None, *, retry_after_s: int | None = None) -> None:
        self.code = code
        self.status, default = CATALOGUE[code]
        self.detail = message
        self.message = message or default
        self.retry_after_s = 1 if retry_after_s is None and self.status == 503 else retry_after_s
        super().__init__(f"{code}: {self.message}")


def picture_error(code: str, kind: str | None) -> ServiceError:
    """Returns the error of a picture that was refused with `code`. `kind` names an unsupported kind of picture, e.g.
    "12-bit JPEG"; None means that it is unknown or supported.
    """
    return ServiceError(code, None if kind is None else f"{kind} is not supported; send {FORMATS}.")


FORMATS = "JPEG, PNG, WebP, GIF, AVIF, TIFF, HEIC or SVG"

CATALOGUE: dict[str, tuple[int, str]] = {
    # the request
    "bad-request": (400, "The request is not valid HTTP; check its method, path and headers."),
    "invalid-parameter": (400, "A parameter has an invalid value."),
    "invalid-body": (400, "The body is malformed; send the bytes of one image."),
    "empty-body": (400, "The body is empty; send the bytes of one image."),
    "invalid-id": (400, "An image id has 7 to 16 letters and digits; check the id."),
    "too-many-tags": (400, "An image can have at most 20 tags; remove some first."),
    "invalid-url": (400, "The URL is not valid; send an absolute http or https URL."),
    "url-not-allowed": (
        400,
        "The URL points to an address that this server does not fetch from; use a public address.",
    ),
    "invalid-idempotency-key": (400, "An Idempotency-Key must have 1 to 255 visible ASCII characters."),
    "unauthorized": (
        401,
        "A valid API key is required; send it as ?key=, as X-Api-Key or as Authorization: Bearer.",
    ),
    "not-found": (404, "This path does not exist; the API is under /v1, images are served under /i."),
    "image-not-found": (404, "Your account has no image with this id."),
    "image-processing": (404, "The image is still being processed; try again shortly."),
    "image-deleted": (404, "The image was deleted during this request."),
    "method-not-allowed": (405, "This path does not support this method; see the Allow header."),
    "upload-timeout": (408, "The body stopped arriving; send it again without long pauses."),
    "upload-too-large": (413, "The file is larger than this server accepts."),
    "range-not-satisfiable": (
        416,
        "The Range starts after the end of the file; request another range, or the whole file.",
    ),
    "unsupported-content-type": (
        415,
        "Send the header Content-Type: application/octet-stream (or image/*, multipart/form-data, application/json).",
    ),
    "unsupported-content-encoding": (
        415,
        "Compressed bodies are not supported; send the body without a Content-Encoding such as gzip.",
    ),
    "expectation-failed": (417, "Only Expect: 100-continue is supported."),
    "idempotency-key-reused": (
        422,
        "This Idempotency-Key was used for another file or URL within 24 hours; use a new key for each image.",
    ),
    # the URL of an image
    "origin-not-found": (422, "The URL was not found, or its host name is unknown; check the URL."),
    "origin-refused": (422, "The file could not be fetched from the URL; check the URL, or upload the file."),
    "origin-too-slow": (422, "The server of the URL took too long; try again, or upload the file."),
    "not-an-image": (415, f"The URL does not return an image; it must be {FORMATS}."),
    # the file
    "unsupported-image": (415, f"The file is not a supported image; send {FORMATS}."),
    "damaged-image": (415, "The image is truncated or damaged; send the whole file."),
    "too-many-pixels": (
        422,
        "Width times height times pages exceeds this server's limit; send a smaller image.",
    ),
    "probe-failed": (422, "The image could not be decoded within this server's limits of time and memory."),
    "image-lost": (410, "The file of the image is missing from the storage; upload it again."),
    "image-damaged": (500, "The file of the image is damaged in the storage; it has to be restored from a backup."),
    # the rendition
    "rendition-too-large": (400, "The rendition would have too many pixels; request a smaller one."),
    "rendition-failed": (
        422,
        "The rendition could not be made within this server's limits of time and memory; request a smaller one.",
    ),
    "too-many-renditions": (
        429,
        "Too many new renditions for this account or address; retry after the seconds in Retry-After.",
    ),
    "too-many-misses": (
        429,
        "Too many requests for ids that do not exist from this address; retry after the seconds in Retry-After.",
    ),
    "rendition-not-ready": (503, "The rendition is not ready yet; try again shortly."),
    # the account
    "account-suspended": (403, "This account is suspended; contact the operator of this server."),
    "quota-exceeded": (403, "The account's storage quota is exceeded; delete images, or ask the operator for more."),
    # the signature of an image's URL
    "signature-required": (403, "This account requires signed URLs; sign the URL."),
    "signature-invalid": (
        403,
        "The signature does not match the URL; sign path and query exactly as sent, with an active signing key.",
    ),
    "signature-expired": (403, "The signed URL has expired; request a new one."),
    # the key
    "rate-limited": (429, "Too many requests with this API key; retry after the seconds in Retry-After."),
    # the server
    "busy": (503, "Too many uploads are in progress; try again shortly."),
    "database-unavailable": (503, "The database is unavailable; try again shortly."),
    "queue-unavailable": (503, "The job queue is unavailable; try again shortly."),
    "storage-unavailable": (503, "The image storage is unavailable; try again shortly."),
    "internal": (500, "Internal error; the server's log has the details under the request id."),
}
