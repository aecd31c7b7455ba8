"""Decoder processes: each picture has a time limit, and no picture can crash the worker.

- pool.py, the pool: what the rest of the worker calls; its dispatcher chooses the next request and its decoder;
- decoder.py is one decoder as the worker sees it, process.py its operating system process;
- files.py opens pictures for decoders, in threads that may hang;
- messages.py is the protocol, and validates results;
- decoder_main.py is the program that runs in the process, limits.py its resource limits, confinement.py and seccomp.py
  the sandbox that it enters before it sees a picture.

Why not a library: pebble, which can stop a task at its time limit, uses one shared pipe for its processes, polls ten
times a second, and cannot give the processes another environment. Here each decoder is a process with its own pair of
pipes on the event loop.
"""
