"""Alternatives to Daguerre. The benchmark compares it with them on the same machine and database.

Each is what a competent developer would write in an afternoon, and then tuned; each file lists what was tried. They
implement two requests of Daguerre's API, so that all can be put under the same load:

    POST /v1/images?key=K&with_exif=1&with_mini_preview=1    stores the body, a JPEG, and inserts its metadata
    GET  /v1/images/{id}?key=K                               returns the row, by its primary key

`fastify_sharp/` (Node; `start.py` installs its packages with npm) and `fastapi_pillow.py` do all of that.
`bare_aiohttp.py` is the upper bound: it only writes the body to a file, or reads the row, and checks no key.

Three send a picture, without a key: BENCH_FILES/ID.jpg, which is written before the first request.

    GET  /i/{id}?width=300              `bare_sharp/` (Node) resizes it for every request
    GET  /unsafe/300x0/ID.jpg           `thumbor/` (in its own virtual environment) does the same
    GET  /i/{id}                        `bare_aiohttp.py` sends it unchanged from memory

They are configured by the environment:

    BENCH_PORT       the port to listen on, of 127.0.0.1
    BENCH_DSN        the PostgreSQL; each comparator creates its own table there if it is missing
    BENCH_FILES      the folder of the pictures
    BENCH_KEY        the only valid key
    BENCH_PROCESSES  the number of processes, by default 2
    BENCH_FSYNC      if not empty, the file and its folder are synced before the response. Few people write that, so it
                     is off by default

Each prints one line when it listens and ends on SIGTERM.
"""
