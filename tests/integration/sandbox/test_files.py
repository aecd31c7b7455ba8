"""Files that are opened for decoders: at the first path that exists, in time or not at all, and closed again."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.sandbox.conftest import NewPool
from tests.support.samples import jpeg
from worker.sandbox.files import MAX_THREADS, PictureFiles
from worker.sandbox.pool import DecoderPool
from worker.sandbox.process import DecoderUnavailable

pytestmark = pytest.mark.slow

SECONDS = 0.5


@pytest.fixture
def files() -> Iterator[PictureFiles]:
    files = PictureFiles(SECONDS)
    yield files
    files.close()


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A file whose opening blocks, as on a disk that hangs, until `release` is called."""
    path = tmp_path / "hanging"
    os.mkfifo(path)
    return path


async def release(path: Path, files: PictureFiles) -> None:
    """Lets the file open, and waits until the event loop knows."""
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    async with asyncio.timeout(5):
        while files.threads.unfinished:
            await asyncio.sleep(0.01)


async def give_up(files: PictureFiles, path: Path) -> None:
    with pytest.raises(DecoderUnavailable):
        async with files.open([str(path)]):
            pass


async def hang(files: PictureFiles, folder: Path, count: int) -> Sequence[Path]:
    """Makes `count` files that occupy a thread each."""
    paths = [folder / f"hanging-{number}" for number in range(count)]
    for path in paths:
        os.mkfifo(path)
    await asyncio.gather(*(give_up(files, path) for path in paths))
    return paths


async def release_all(paths: Sequence[Path], files: PictureFiles) -> None:
    """Including those that wait for a thread."""
    async with asyncio.timeout(5):
        while files.threads.unfinished:
            for path in paths:
                with suppress(OSError):  # no thread opens it at this moment
                    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            await asyncio.sleep(0.01)


def open_files(folder: Path) -> list[str]:
    """The files of a folder that this process has open."""
    names = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            names.append(str(link.readlink()))
    return [name for name in names if name.startswith(str(folder))]


async def until_closed(folder: Path) -> None:
    async with asyncio.timeout(5):
        while open_files(folder):
            await asyncio.sleep(0.01)


async def test_files_are_closed_with_the_context(files: PictureFiles, picture: str, tmp_path: Path) -> None:
    async with files.open([str(tmp_path / "none"), picture], [picture]) as opened:
        assert [file.read(2) for file in opened] == [b"\xff\xd8"] * 2
        assert open_files(tmp_path) == [picture] * 2
    assert open_files(tmp_path) == []


async def test_local_disk_needs_no_thread(picture: str, tmp_path: Path) -> None:
    files = PictureFiles(SECONDS, is_local=True)
    async with files.open([str(tmp_path / "none"), picture]) as opened:
        assert opened[0].read(2) == b"\xff\xd8"
    with pytest.raises(FileNotFoundError):
        async with files.open([str(tmp_path / "none")]):
            pass
    assert files.threads.thread_count == 0
    assert open_files(tmp_path) == []


async def test_missing_watermark_is_reported(files: PictureFiles, picture: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    with pytest.raises(FileNotFoundError) as error:
        async with files.open([picture], [missing, missing]):
            pass
    assert error.value.filename == missing
    assert open_files(tmp_path) == []


async def test_folder_is_no_picture(files: PictureFiles, tmp_path: Path) -> None:
    with pytest.raises(DecoderUnavailable, match="IsADirectoryError"):
        async with files.open([str(tmp_path)]):
            pass


async def test_hanging_file_is_given_up_in_time(files: PictureFiles, hanging: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(DecoderUnavailable, match="does not open"):
        async with files.open([str(hanging)]):
            pass
    assert SECONDS <= time.monotonic() - began < SECONDS + 2
    await release(hanging, files)
    assert open_files(tmp_path) == []


async def test_hanging_file_takes_one_thread(files: PictureFiles, hanging: Path, picture: str) -> None:
    for _ in range(40):  # more than there are threads
        with pytest.raises(DecoderUnavailable):
            async with files.open([str(hanging)]):
                pass
    async with files.open([picture]) as opened:
        assert len(opened) == 1
    assert files.threads.thread_count == 2
    await release(hanging, files)


async def test_file_opens_after_a_remount(files: PictureFiles, hanging: Path) -> None:
    """Threads that wait for the old mount hang for good."""
    with pytest.raises(DecoderUnavailable):
        async with files.open([str(hanging)]):
            pass
    hanging.rename(hanging.with_name("old"))
    hanging.write_bytes(jpeg())
    with pytest.raises(DecoderUnavailable):  # too soon
        async with files.open([str(hanging)]):
            pass
    await asyncio.sleep(SECONDS)
    async with files.open([str(hanging)]) as opened:
        assert len(opened) == 1
    await release(hanging.with_name("old"), files)


async def test_hanging_files_leave_threads_to_others(files: PictureFiles, tmp_path: Path, picture: str) -> None:
    paths = await hang(files, tmp_path, MAX_THREADS // 2 + 4)
    await asyncio.sleep(SECONDS)
    await asyncio.gather(*(give_up(files, path) for path in paths))  # each would take one thread more
    async with files.open([picture]) as opened:
        assert len(opened) == 1
    await release_all(paths, files)


async def test_quick_files_share_one_thread(files: PictureFiles, picture: str) -> None:
    """Several would compete for the interpreter's lock."""

    async def open_one() -> None:
        async with files.open([picture]):
            pass

    for _ in range(20):
        await asyncio.gather(*(open_one() for _ in range(10)))
    assert files.threads.thread_count <= 2  # two if the machine was busy for some milliseconds


async def test_hanging_file_is_not_polled(files: PictureFiles, tmp_path: Path) -> None:
    """The event loop is woken only while other calls wait behind it."""
    paths = await hang(files, tmp_path, 1)
    await asyncio.sleep(0.1)
    assert not files.threads.is_watched
    await release_all(paths, files)


async def test_file_behind_hanging_ones_is_retried(files: PictureFiles, tmp_path: Path, picture: str) -> None:
    paths = await hang(files, tmp_path, MAX_THREADS)
    await give_up(files, Path(picture))  # no thread was left
    await release_all(paths, files)
    async with files.open([picture]) as opened:
        assert len(opened) == 1


def test_hanging_file_does_not_block_exit(hanging: Path) -> None:
    script = (
        "import asyncio, sys\nfrom worker.sandbox.files import PictureFiles\nasync def main():\n"
        "    async with PictureFiles(0.1).open([sys.argv[1]]):\n        pass\nasyncio.run(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(hanging)], capture_output=True, text=True, check=False, timeout=20
    )
    assert "its file does not open" in done.stderr


async def test_file_that_opens_too_late_is_closed(files: PictureFiles, hanging: Path, tmp_path: Path) -> None:
    async def use() -> None:
        async with files.open([str(hanging)]):
            pass

    opening = asyncio.create_task(use())
    await asyncio.sleep(0.1)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await release(hanging, files)
    assert open_files(tmp_path) == []


async def test_files_of_a_cancelled_task_are_closed(files: PictureFiles, picture: str, tmp_path: Path) -> None:
    """Even if they arrive in the same turn of the event loop in which the task is cancelled."""

    async def use() -> None:
        async with files.open([picture]):
            await asyncio.sleep(10)

    for turns in range(20):
        using = asyncio.create_task(use())
        for _ in range(turns):
            await asyncio.sleep(0)
        while turns % 2 and files.threads.unfinished:
            await asyncio.sleep(0)
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using
    await until_closed(tmp_path)


async def test_hanging_file_delays_no_other_picture(new_pool: NewPool, hanging: Path, picture: str) -> None:
    pool = new_pool(timeout_s=3)
    await pool.start()
    waiting = asyncio.create_task(pool.probe(str(hanging)))
    await asyncio.sleep(0.1)
    began = time.monotonic()
    assert (await pool.probe(picture)).width == 120
    assert time.monotonic() - began < 2
    with pytest.raises(DecoderUnavailable):
        await waiting
    await release(hanging, pool.files)


async def test_no_descriptor_stays_open(pool: DecoderPool, picture: str, tmp_path: Path) -> None:
    """Neither in the worker nor in the decoder, even if requests are cancelled."""
    descriptors = Path(f"/proc/{pool.decoders[0].process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(3):
        await pool.probe(picture)
    probing = [asyncio.create_task(pool.probe(picture)) for _ in range(20)]
    await asyncio.sleep(0.01)
    for task in probing:
        task.cancel()
    await asyncio.gather(*probing, return_exceptions=True)
    await until_closed(tmp_path)
    await pool.probe(picture)
    assert len(list(descriptors.iterdir())) == before
    assert open_files(tmp_path) == []
