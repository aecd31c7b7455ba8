"""A child process that answers each request with the bytes of a file, whatever it was asked."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

from worker.sandbox.messages import GREETING_TOKEN, HEADER_BYTES, LENGTH, MAX_FILES, TOKEN_BYTES, Answer, encode_answer

# In a lie: the token of the request.
TOKEN = b"<token>"


def main() -> None:
    requests = socket.socket(fileno=0)
    lie = Path(sys.argv[1])
    with open(1, "wb", closefd=False) as answers:
        answers.write(GREETING_TOKEN + encode_answer(Answer.greeting(computed_s=time.process_time(), unconfined=[])))
        answers.flush()
        while header := socket.recv_fds(requests, HEADER_BYTES, MAX_FILES)[0]:
            requests.recv(LENGTH.unpack_from(header, TOKEN_BYTES)[0], socket.MSG_WAITALL)
            token = header[:TOKEN_BYTES]
            if not lie.exists():  # it says nothing at all
                time.sleep(60)
            answers.write(token + lie.read_bytes().replace(TOKEN, token))
            answers.flush()


if __name__ == "__main__":
    main()
