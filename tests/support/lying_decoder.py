"""A fake decoder process that responds to each request with the bytes of a file."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

from worker.sandbox.messages import (
    GREETING_TOKEN,
    HEADER_BYTES,
    LENGTH,
    MAX_FILES,
    TOKEN_BYTES,
    Response,
    encode_response,
)

# In the file: replaced by the token of the request.
TOKEN = b"<token>"


def main() -> None:
    requests = socket.socket(fileno=0)
    response_file = Path(sys.argv[1])
    with open(1, "wb", closefd=False) as responses:
        responses.write(GREETING_TOKEN + encode_response(Response.greeting(cpu_s=time.process_time(), missing=[])))
        responses.flush()
        while header := socket.recv_fds(requests, HEADER_BYTES, MAX_FILES)[0]:
            requests.recv(LENGTH.unpack_from(header, TOKEN_BYTES)[0], socket.MSG_WAITALL)
            token = header[:TOKEN_BYTES]
            if not response_file.exists():  # hangs without a response
                time.sleep(60)
            responses.write(token + response_file.read_bytes().replace(TOKEN, token))
            responses.flush()


if __name__ == "__main__":
    main()
