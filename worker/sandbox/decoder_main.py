"""The program of a decoder process: handles groups of requests, one request at a time, until its worker has ended."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from itertools import islice
from typing import BinaryIO

from service.images.probe import Rejected
from worker.sandbox import confinement, limits
from worker.sandbox.messages import (
    GREETING_TOKEN,
    LENGTH,
    MAX_CAUSE_CHARS,
    MAX_FILES,
    Envelope,
    LocationRequest,
    Patches,
    ProbeRequest,
    ReadError,
    Rejection,
    Rendered,
    RenderRequest,
    Request,
    Response,
    Result,
    decode_requests,
    encode_response,
)

_PR_SET_PDEATHSIG = 1
_MAX_INHERITED = 1 << 16
# A response waits at most this long for those of the next pictures of its group, and for the picture that is decoded.
_MAX_DELAY_S = 0.005


def main() -> None:
    worker, timeout_s = int(sys.argv[1]), float(sys.argv[2])
    _die_with_worker(worker)
    # Descriptors that the worker inherited, and uvloop's duplicates. Older systems close them one by one, up to a
    # billion.
    os.closerange(3, min(os.sysconf("SC_OPEN_MAX"), _MAX_INHERITED))
    os.nice(int(sys.argv[3]))
    requests = socket.socket(fileno=sys.stdin.fileno())
    responses = _claim_stdout()
    limits.limit_memory()
    limits.limit_total_cpu(timeout_s)
    limits.keep_freed_memory()
    from worker import imaging  # noqa: PLC0415 - libvips reads its limits when it is loaded

    imaging.prepare()
    greeting = Response.greeting(missing=confinement.enter_sandbox(), cpu_s=time.process_time())
    responses.write(GREETING_TOKEN + encode_response(greeting))
    responses.flush()
    while (received := _receive(requests)) is not None:
        limits.extend_cpu_limit(timeout_s)  # for the whole group, as the time limit of the worker
        _handle_group(*received, responses)


def _handle_group(group: Sequence[Envelope], files: Sequence[int], responses: BinaryIO) -> None:
    """Writes the responses of quick pictures together: each write wakes up the worker."""
    descriptors = iter(files)
    started_at = flushed_at = time.monotonic()
    for envelope in group:
        own = [*islice(descriptors, envelope.file_count)]
        result = handle(envelope.request, own)
        for fd in own:
            os.close(fd)
        now = time.monotonic()
        response = Response.of(result, seconds=now - started_at, cpu_s=time.process_time())
        responses.write(envelope.token + encode_response(response))
        started_at = now
        if now - flushed_at > _MAX_DELAY_S:
            responses.flush()
            flushed_at = now
    responses.flush()


def handle(request: Request, files: Sequence[int]) -> Result:
    """Returns the result of a request. Raises other errors of imaging, which end the process."""
    try:
        return _decode(request, *files)
    except Rejected as error:
        return Rejection(error.code, error.kind)
    except OSError as error:
        if error.errno is None:
            raise  # raised by Pillow: it concerns the picture, not the disk
        return ReadError(repr(error)[:MAX_CAUSE_CHARS])


def _decode(request: Request, picture: int, watermark: int | None = None) -> Result:
    from worker import imaging  # noqa: PLC0415

    match request:
        case ProbeRequest(max_pixels=max_pixels):
            return imaging.probe(picture, max_pixels=max_pixels)
        case RenderRequest(transformation=transformation, max_pixels=max_pixels):
            return Rendered(imaging.render(picture, transformation, watermark=watermark, max_pixels=max_pixels))
        case LocationRequest():
            return Patches(imaging.find_locations(picture))


def _receive(requests: socket.socket) -> tuple[Sequence[Envelope], Sequence[int]] | None:
    """Returns a group of requests and the descriptors of their files, which come with its first byte. Returns None at
    the end of the stream.
    """
    header, files, _, _ = socket.recv_fds(requests, LENGTH.size, MAX_FILES, socket.MSG_WAITALL)
    if len(header) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(header)
    payload = b""
    while length > len(payload):
        chunk = os.read(requests.fileno(), length - len(payload))
        if not chunk:
            return None
        payload += chunk
    return decode_requests(payload), files


def _claim_stdout() -> BinaryIO:
    """Returns the pipe to the worker, and redirects stdout to stderr for libraries that print."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe


def _die_with_worker(worker: int) -> None:
    """Makes the process end with the worker: on Linux immediately, elsewhere after the current picture."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != worker:
            sys.exit(1)
    # The worker handles them, and lets the current picture finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    main()
