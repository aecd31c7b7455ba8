"""A child process that answers each request with the bytes of a file, whatever it was asked."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

from worker.children.messages import LENGTH, MAX_FILES, Answer, encode_answer


def main() -> None:
    requests = socket.socket(fileno=0)
    lie = Path(sys.argv[1])
    with open(1, "wb", closefd=False) as answers:
        answers.write(encode_answer(Answer.greeting(computed_s=time.process_time(), unconfined=[])))
        answers.flush()
        while header := socket.recv_fds(requests, LENGTH.size, MAX_FILES)[0]:
            requests.recv(LENGTH.unpack(header)[0], socket.MSG_WAITALL)
            if not lie.exists():  # it says nothing at all
                time.sleep(60)
            answers.write(lie.read_bytes())
            answers.flush()


if __name__ == "__main__":
    main()
