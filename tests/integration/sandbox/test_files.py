"""Files that are opened for child processes: at the first of their places, in time or not at all, and closed again."""

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

from tests.support.samples import jpeg
from worker.sandbox.files import PictureFiles
from worker.sandbox.pool import Children
from worker.sandbox.process import ChildUnavailable
from worker.sandbox.threads import MAX_THREADS

SECONDS = 0.5


@pytest.fixture
def files() -> Iterator[PictureFiles]:
    files = PictureFiles(SECONDS)
    yield files
    files.close()


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture"
    path.write_bytes(jpeg(120, 80))
    return str(path)


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A file that does not open, as on a disk that hangs, until `release` is called on it."""
    path = tmp_path / "hanging"
    os.mkfifo(path)
    return path


async def release(path: Path, files: PictureFiles) -> None:
    """Lets the file open, and waits until that has come to the loop."""
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    async with asyncio.timeout(5):
        while files._threads._unfinished:
            await asyncio.sleep(0.01)


async def give_up(files: PictureFiles, path: Path) -> None:
    with pytest.raises(ChildUnavailable):
        async with files.opened([str(path)]):
            pass


async def hang(files: PictureFiles, folder: Path, count: int) -> Sequence[Path]:
    """As many files that hang in a thread each."""
    paths = [folder / f"hanging-{number}" for number in range(count)]
    for path in paths:
        os.mkfifo(path)
    await asyncio.gather(*(give_up(files, path) for path in paths))
    return paths


async def release_all(paths: Sequence[Path], files: PictureFiles) -> None:
    """Also those that wait for a thread."""
    async with asyncio.timeout(5):
        while files._threads._unfinished:
            for path in paths:
                with suppress(OSError):  # nobody opens it now
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
    async with files.opened([str(tmp_path / "none"), picture], [picture]) as opened:
        assert [file.read(2) for file in opened] == [b"\xff\xd8"] * 2
        assert open_files(tmp_path) == [picture] * 2
    assert open_files(tmp_path) == []


async def test_a_missing_watermark_is_missing(files: PictureFiles, picture: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    with pytest.raises(FileNotFoundError) as error:
        async with files.opened([picture], [missing, missing]):
            pass
    assert error.value.filename == missing
    assert open_files(tmp_path) == []


async def test_a_folder_is_no_picture(files: PictureFiles, tmp_path: Path) -> None:
    with pytest.raises(ChildUnavailable, match="IsADirectoryError"):
        async with files.opened([str(tmp_path)]):
            pass


async def test_a_hanging_file_is_given_up_in_time(files: PictureFiles, hanging: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ChildUnavailable, match="does not open"):
        async with files.opened([str(hanging)]):
            pass
    assert SECONDS <= time.monotonic() - began < SECONDS + 2
    await release(hanging, files)
    assert open_files(tmp_path) == []


async def test_a_hanging_file_takes_one_thread(files: PictureFiles, hanging: Path, picture: str) -> None:
    for _ in range(40):  # more than there are threads
        with pytest.raises(ChildUnavailable):
            async with files.opened([str(hanging)]):
                pass
    async with files.opened([picture]) as opened:
        assert len(opened) == 1
    assert files._threads._threads == 2
    await release(hanging, files)


async def test_a_file_that_hangs_for_good_opens_later(files: PictureFiles, hanging: Path) -> None:
    """As on a disk that is mounted anew: what waits for the old one never ends."""
    with pytest.raises(ChildUnavailable):
        async with files.opened([str(hanging)]):
            pass
    hanging.rename(hanging.with_name("old"))
    hanging.write_bytes(jpeg())
    with pytest.raises(ChildUnavailable):  # too soon
        async with files.opened([str(hanging)]):
            pass
    await asyncio.sleep(SECONDS)
    async with files.opened([str(hanging)]) as opened:
        assert len(opened) == 1
    await release(hanging.with_name("old"), files)


async def test_hanging_files_leave_threads_to_others(files: PictureFiles, tmp_path: Path, picture: str) -> None:
    paths = await hang(files, tmp_path, MAX_THREADS // 2 + 4)
    await asyncio.sleep(SECONDS)
    await asyncio.gather(*(give_up(files, path) for path in paths))  # each would take one thread more
    async with files.opened([picture]) as opened:
        assert len(opened) == 1
    await release_all(paths, files)


async def test_quick_files_share_one_thread(files: PictureFiles, picture: str) -> None:
    """Several would wait for each other at the interpreter's lock."""

    async def open_one() -> None:
        async with files.opened([picture]):
            pass

    for _ in range(20):
        await asyncio.gather(*(open_one() for _ in range(10)))
    assert files._threads._threads <= 2  # a second one if this machine was busy for some milliseconds


async def test_hanging_file_costs_no_looks_at_it(files: PictureFiles, tmp_path: Path) -> None:
    """The loop is woken only while calls wait behind it."""
    paths = await hang(files, tmp_path, 1)
    await asyncio.sleep(0.1)
    assert not files._threads._is_watched
    await release_all(paths, files)


async def test_file_behind_hanging_ones_is_not_put_off(files: PictureFiles, tmp_path: Path, picture: str) -> None:
    paths = await hang(files, tmp_path, MAX_THREADS)
    await give_up(files, Path(picture))  # no thread was left
    await release_all(paths, files)
    async with files.opened([picture]) as opened:
        assert len(opened) == 1


def test_a_hanging_file_keeps_no_worker_from_ending(hanging: Path) -> None:
    script = (
        "import asyncio, sys\nfrom worker.sandbox.files import PictureFiles\nasync def main():\n"
        "    async with PictureFiles(0.1).opened([sys.argv[1]]):\n        pass\nasyncio.run(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(hanging)], capture_output=True, text=True, check=False, timeout=20
    )
    assert "its file does not open" in done.stderr


async def test_a_file_that_opens_too_late_is_closed(files: PictureFiles, hanging: Path, tmp_path: Path) -> None:
    async def use() -> None:
        async with files.opened([str(hanging)]):
            pass

    opening = asyncio.create_task(use())
    await asyncio.sleep(0.1)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await release(hanging, files)
    assert open_files(tmp_path) == []


async def test_files_of_a_cancelled_task_are_closed(files: PictureFiles, picture: str, tmp_path: Path) -> None:
    """Also if they came in the same turn of the loop as the end of the task."""

    async def use() -> None:
        async with files.opened([picture]):
            await asyncio.sleep(10)

    for turns in range(20):
        using = asyncio.create_task(use())
        for _ in range(turns):
            await asyncio.sleep(0)
        while turns % 2 and files._threads._unfinished:
            await asyncio.sleep(0)
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using
    await until_closed(tmp_path)


async def test_a_hanging_file_delays_no_other_picture(hanging: Path, picture: str) -> None:
    children = Children(1, max_pixels=1_000_000, timeout_s=3)
    await children.start()
    waiting = asyncio.create_task(children.probe(str(hanging)))
    await asyncio.sleep(0.1)
    began = time.monotonic()
    assert (await children.probe(picture)).width == 120
    assert time.monotonic() - began < 2
    with pytest.raises(ChildUnavailable):
        await waiting
    await release(hanging, children._files)
    await children.end()


async def test_no_descriptor_stays_open(picture: str, tmp_path: Path) -> None:
    """Neither in the worker nor in the child, also where nobody waits for the answer any more."""
    children = Children(1, max_pixels=1_000_000, timeout_s=5)
    await children.start()
    descriptors = Path(f"/proc/{children._all[0].process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(3):
        await children.probe(picture)
    probing = [asyncio.create_task(children.probe(picture)) for _ in range(20)]
    await asyncio.sleep(0.01)
    for task in probing:
        task.cancel()
    await asyncio.gather(*probing, return_exceptions=True)
    await until_closed(tmp_path)
    await children.probe(picture)
    assert len(list(descriptors.iterdir())) == before
    assert open_files(tmp_path) == []
    await children.end()
