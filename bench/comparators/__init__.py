"""What people would write instead of Daguerre: the benchmark runs these beside it, on the same machine and database.

Each is what a competent developer would write in an afternoon, and then tuned; what was tried is said in each. They
answer two requests of Daguerre's API, so that one load fits all:

    POST /v1/images?key=K&with_exif=1&with_mini_preview=1    a JPEG as the body, to a file, probed, and one row
    GET  /v1/images/{id}?key=K                               the row, by its primary key

`fastify_sharp/` (Node; `start.py` has npm install what it needs) and `fastapi_pillow.py` do all of it.
`bare_aiohttp.py` is the ceiling: the body to a file and nothing else, the row and nothing else, and no key.

Three answer with a picture, and know no key: from BENCH_FILES/ID.jpg, which is put there before they start.

    GET  /i/{id}?width=300              `bare_sharp/` (Node) makes it that wide for each request anew
    GET  /unsafe/300x0/ID.jpg           `thumbor/` (in a virtual environment of its own) does the same
    GET  /i/{id}                        `bare_aiohttp.py` has it in memory, as it is

The environment says the rest:

    BENCH_PORT       where to listen, on 127.0.0.1
    BENCH_DSN        PostgreSQL; each has a table of its own name there and makes it where it is missing
    BENCH_FILES      the folder for the pictures
    BENCH_KEY        the one key
    BENCH_PROCESSES  2 without it
    BENCH_FSYNC      anything: the file and its folder are on the disk before the answer. Few people write that, so
                     nothing does it without

Each prints one line once it listens and ends on SIGTERM.
"""
