"""The program of a child process: decodes pictures one at a time, until its worker is gone."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import BinaryIO

from service.images.probe import Rejected
from worker.sandbox import confinement, heap
from worker.sandbox.messages import (
    GREETING_TOKEN,
    HEADER_BYTES,
    LENGTH,
    MAX_CAUSE_CHARS,
    MAX_FILES,
    TOKEN_BYTES,
    Answer,
    Finding,
    LocationRequest,
    Patches,
    ProbeRequest,
    Refusal,
    Rendered,
    RenderRequest,
    Request,
    Unreadable,
    decode_request,
    encode_answer,
)

_PR_SET_PDEATHSIG = 1
_MAX_INHERITED = 1 << 16


def main() -> None:
    worker, timeout_s = int(sys.argv[1]), float(sys.argv[2])
    _die_with(worker)
    # What the worker was started with, and uvloop's duplicates. Older systems close one by one, of up to a billion.
    os.closerange(3, min(os.sysconf("SC_OPEN_MAX"), _MAX_INHERITED))
    os.nice(int(sys.argv[3]))
    requests = socket.socket(fileno=sys.stdin.fileno())
    answers = _claim_stdout()
    confinement.limit_memory()
    confinement.limit_all_cpu(timeout_s)
    heap.keep_freed_memory()
    from worker import imaging  # noqa: PLC0415 - libvips reads its limits when it is loaded

    imaging.prepare()
    unconfined = confinement.confine()
    greeting = Answer.greeting(computed_s=time.process_time(), unconfined=unconfined)
    answers.write(GREETING_TOKEN + encode_answer(greeting))
    answers.flush()
    while (received := _receive(requests)) is not None:
        began = time.monotonic()
        confinement.allow_cpu(timeout_s)
        token, request, files = received
        finding = _find(request, files)
        for fd in files:
            os.close(fd)
        answer = Answer.of(finding, seconds=time.monotonic() - began, computed_s=time.process_time())
        answers.write(token + encode_answer(answer))
        answers.flush()


def _find(request: Request, files: Sequence[int]) -> Finding:
    try:
        return _answer(request, *files)
    except Rejected as refusal:
        return Refusal(refusal.code, refusal.kind)
    except OSError as error:
        if error.errno is None:
            raise  # a decoder's or encoder's own, which is about the picture
        return Unreadable(repr(error)[:MAX_CAUSE_CHARS])


def _answer(request: Request, picture: int, watermark: int | None = None) -> Finding:
    from worker import imaging  # noqa: PLC0415

    match request:
        case ProbeRequest(max_pixels=max_pixels):
            return imaging.probe(picture, max_pixels=max_pixels)
        case RenderRequest(transformation=transformation, max_pixels=max_pixels):
            return Rendered(imaging.render(picture, transformation, watermark=watermark, max_pixels=max_pixels))
        case LocationRequest():
            return Patches(imaging.find_locations(picture))


def _receive(requests: socket.socket) -> tuple[bytes, Request, Sequence[int]] | None:
    """The next request with its token, and the descriptors of its files, which come with its first byte. None at the
    end.
    """
    header, files, _, _ = socket.recv_fds(requests, HEADER_BYTES, MAX_FILES, socket.MSG_WAITALL)
    if len(header) < HEADER_BYTES:
        return None
    (left,) = LENGTH.unpack_from(header, TOKEN_BYTES)
    payload = b""
    while left > len(payload):
        piece = os.read(requests.fileno(), left - len(payload))
        if not piece:
            return None
        payload += piece
    return header[:TOKEN_BYTES], decode_request(payload), files


def _claim_stdout() -> BinaryIO:
    """Keep the pipe to the worker to ourselves: what a library prints goes to stderr."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe


def _die_with(worker: int) -> None:
    """On Linux a worker that is killed takes its children along; elsewhere they end after the picture at hand."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != worker:
            sys.exit(1)
    # The worker's to handle: it lets the picture at hand finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    main()
