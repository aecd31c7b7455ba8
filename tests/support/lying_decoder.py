"""A fake decoder process that responds to each request, or to a whole group, with the bytes of a file."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

from worker.sandbox.messages import (
    GREETING_TOKEN,
    LENGTH,
    MAX_FILES,
    Response,
    decode_requests,
    encode_response,
)

# In the file: replaced by the token of the request.
TOKEN = b"<token>"
# In the file for groups, which has the tokens of all responses: those of the first two requests.
TOKENS = b"<token 0>", b"<token 1>"


def main() -> None:
    requests = socket.socket(fileno=0)
    response_file = Path(sys.argv[1])
    group_file = response_file.with_suffix(".group")
    with open(1, "wb", closefd=False) as responses:
        responses.write(GREETING_TOKEN + encode_response(Response.greeting(cpu_s=time.process_time(), missing=[])))
        responses.flush()
        while header := socket.recv_fds(requests, LENGTH.size, MAX_FILES)[0]:
            group = decode_requests(requests.recv(LENGTH.unpack(header)[0], socket.MSG_WAITALL))
            if not response_file.exists():  # hangs without a response
                time.sleep(60)
            if len(group) > 1 and group_file.exists():
                message = group_file.read_bytes()
                for placeholder, envelope in zip(TOKENS, group, strict=False):
                    message = message.replace(placeholder, envelope.token)
                responses.write(message)
            else:
                for envelope in group:
                    responses.write(envelope.token + response_file.read_bytes().replace(TOKEN, envelope.token))
            responses.flush()


if __name__ == "__main__":
    main()
