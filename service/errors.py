"""Every error of the API, once: stable code, status and the sentence that says what to do."""

from __future__ import annotations


class ServiceError(Exception):
    """An error that the client is told. Two errors are the same kind if their codes are equal.

    `message` is the sentence for the client: `detail` if there is one, or the one of the catalogue.
    """

    def __init__(self, code: str, message: str | None = None, *, retry_after_s: int | None = None) -> None:
        self.code = code
        self.status, default = CATALOGUE[code]
        self.detail = message
        self.message = message or default
        self.retry_after_s = 1 if retry_after_s is None and self.status == 503 else retry_after_s
        super().__init__(f"{code}: {self.message}")


def refuse_picture(code: str, kind: str | None) -> ServiceError:
    """The error of a picture that was refused with `code`. `kind` names what it is, if it is of a kind that no decoder
    here supports: "12-bit JPEG".
    """
    return ServiceError(code, None if kind is None else f"{kind} is not supported; send {FORMATS}.")


FORMATS = "JPEG, PNG, WebP, GIF, AVIF, TIFF, HEIC or SVG"

CATALOGUE: dict[str, tuple[int, str]] = {
    # the request
    "bad-request": (400, "The request is not valid HTTP; check its method, path and headers."),
    "invalid-parameter": (400, "A parameter has a value that is not allowed."),
    "invalid-body": (400, "The body cannot be read; send the bytes of one image."),
    "empty-body": (400, "The body is empty; send the bytes of one image."),
    "invalid-id": (400, "An image id has 7 to 16 letters and digits; check the id."),
    "too-many-tags": (400, "An image has at most 20 tags; remove some first."),
    "invalid-url": (400, "The URL cannot be used; send an absolute http or https URL."),
    "url-not-allowed": (400, "The URL leads to an address that this server does not fetch from; use a public one."),
    "invalid-idempotency-key": (400, "An Idempotency-Key has 1 to 255 visible ASCII characters; send one of those."),
    "unauthorized": (
        401,
        "A valid API key is needed; send it as ?key=, as X-Api-Key or as Authorization: Bearer.",
    ),
    "not-found": (404, "There is nothing at this address; the API lives under /v1, pictures under /i."),
    "image-not-found": (404, "There is no image with this id in your account."),
    "image-processing": (404, "The image is still being looked at; try again shortly."),
    "image-deleted": (404, "The image was deleted while this request waited for it."),
    "method-not-allowed": (405, "This address does not take this method; see the Allow header."),
    "upload-timeout": (408, "The body stopped arriving; send it again without long pauses."),
    "upload-too-large": (413, "The picture is larger than this server accepts."),
    "range-not-satisfiable": (416, "The Range lies behind the picture's end; ask for another, or for all of it."),
    "unsupported-content-type": (
        415,
        "Send the header Content-Type: application/octet-stream (or image/*, multipart/form-data, application/json).",
    ),
    "unsupported-content-encoding": (
        415,
        "Send the body as it is, without a Content-Encoding such as gzip.",
    ),
    "expectation-failed": (417, "Only Expect: 100-continue is understood."),
    "idempotency-key-reused": (
        422,
        "This Idempotency-Key was sent with another picture or URL within 24 hours; use a new key for each image.",
    ),
    # a picture's URL
    "origin-not-found": (422, "There is nothing at the URL, or its host name is unknown; check the URL."),
    "origin-refused": (422, "The URL's server could not be read; check the URL, or send the picture itself."),
    "origin-too-slow": (422, "The URL's server took too long; try again, or send the picture itself."),
    "not-an-image": (415, "What the URL answers is not a picture in JPEG, PNG, WebP, GIF, AVIF, TIFF, HEIC or SVG."),
    # the picture
    "unsupported-image": (415, "This is not a picture in JPEG, PNG, WebP, GIF, AVIF, TIFF, HEIC or SVG."),
    "damaged-image": (415, "The picture is truncated or damaged; send the whole file."),
    "too-many-pixels": (
        422,
        "Width times height times pages is over this server's limit; send a smaller picture.",
    ),
    "probe-failed": (422, "The picture could not be decoded within this server's limits of time and memory."),
    "image-lost": (410, "The image's file is missing from the storage; upload it again."),
    # the rendition
    "rendition-too-large": (400, "The rendition would have too many pixels; ask for a smaller one."),
    "rendition-failed": (
        422,
        "The rendition could not be made within this server's limits of time and memory; ask for a smaller one.",
    ),
    "too-many-renditions": (
        429,
        "Too many new renditions of this account, or from this address; wait as many seconds as Retry-After says.",
    ),
    "too-many-misses": (
        429,
        "Too many ids that do not exist were asked for from this address; wait as many seconds as Retry-After says.",
    ),
    "rendition-not-ready": (503, "The rendition is still being made; try again shortly."),
    # the account
    "account-suspended": (403, "This account is suspended; ask the operator of this server."),
    "quota-exceeded": (403, "The account's storage is full; delete images or ask for more."),
    # the signature of a picture's URL
    "signature-required": (403, "This account's pictures are shown by signed URLs only; sign the URL."),
    "signature-invalid": (
        403,
        "The signature does not fit the URL; sign path and query exactly as they are sent, with a live signing key.",
    ),
    "signature-expired": (403, "The URL has expired; ask whoever made it for a new one."),
    # the key
    "rate-limited": (429, "This key has made too many requests; wait as many seconds as Retry-After says."),
    # the server
    "busy": (503, "Too many uploads are under way; try again shortly."),
    "database-unavailable": (503, "The database cannot be reached; try again shortly."),
    "queue-unavailable": (503, "The job queue cannot be reached; try again shortly."),
    "storage-unavailable": (503, "The image storage cannot be written; try again shortly."),
    "internal": (500, "Something went wrong on this server; its log has the details under the request id."),
}
