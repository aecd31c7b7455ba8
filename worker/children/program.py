"""The program of a child process: decodes pictures one at a time, until its worker is gone."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import BinaryIO

from service.probes import Rejected
from worker.children import confinement, heap
from worker.children.messages import (
    LENGTH,
    Answer,
    Finding,
    LocationRequest,
    Missing,
    Patches,
    Present,
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


def main() -> None:
    worker, storage, timeout_s = int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    _die_with(worker)
    os.nice(int(sys.argv[4]))
    answers = _claim_stdout()
    confinement.limit_memory()
    heap.keep_freed_memory()
    from worker import imaging  # noqa: PLC0415 - libvips reads its limits when it is loaded

    imaging.prepare()
    folder = _identify(storage)
    unconfined = confinement.confine(storage)
    answers.write(encode_answer(Answer.greeting(computed_s=time.process_time(), unconfined=unconfined)))
    answers.flush()
    while (request := _next_request(sys.stdin.buffer)) is not None:
        began = time.monotonic()
        confinement.allow_cpu(timeout_s)
        finding = _find(request)
        if isinstance(finding, Unreadable):
            finding = Unreadable(finding.cause, outdated=_identify(storage) != folder)
        answer = Answer.of(finding, seconds=time.monotonic() - began, computed_s=time.process_time())
        answers.write(encode_answer(answer))
        answers.flush()


def _find(request: Request) -> Finding:
    for path in request.paths:
        try:
            return _answer(request, path)
        except FileNotFoundError:
            continue
        except Rejected as refusal:
            return Refusal(refusal.code, refusal.kind)
        except OSError as error:
            if error.errno is None:
                raise  # a decoder's or encoder's own, which is about the picture
            return Unreadable(repr(error))
    return Missing()


def _answer(request: Request, path: str) -> Finding:
    from worker import imaging  # noqa: PLC0415

    match request:
        case ProbeRequest(max_pixels=max_pixels):
            return imaging.probe(path, max_pixels=max_pixels)
        case RenderRequest() | LocationRequest() if Path(request.result).exists():
            return Present()
        case RenderRequest(transformation=transformation, max_pixels=max_pixels):
            over = next((path for path in request.watermark_paths if Path(path).exists()), None)
            if request.watermark_paths and over is None:
                return Missing()
            return Rendered(imaging.render(path, transformation, watermark=over, max_pixels=max_pixels))
        case LocationRequest():
            return Patches(path, imaging.find_locations(path))


def _identify(storage: Path) -> tuple[int, int] | None:
    """Which folder lies there; None if there is none. Another one, mounted since, is none that this child may read."""
    try:
        found = storage.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _next_request(source: BinaryIO) -> Request | None:
    header = source.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    return decode_request(source.read(LENGTH.unpack(header)[0]))


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
