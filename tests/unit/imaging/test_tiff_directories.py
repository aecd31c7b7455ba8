"""The reader and writer of TIFF directories."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from worker.file_headers import bytes_reader, file_reader
from worker.imaging.containers.tiff import (
    ASCII,
    LAYOUTS,
    LONG,
    MAX_ENTRIES,
    SHORT,
    Directory,
    Layout,
    Order,
    Tag,
    read_directory,
    read_header,
    walk_directories,
    write_block,
)

MAKE, ORIENTATION, EXIF_IFD = 0x010F, 0x0112, 0x8769


def read(data: bytes, *, max_entries: int = MAX_ENTRIES) -> tuple[Layout, Directory]:
    header = read_header(bytes_reader(data))
    assert header is not None
    return header[0], read_directory(bytes_reader(data), *header, max_entries=max_entries)


def short(order: Order, value: int) -> Tag:
    return Tag(ORIENTATION, SHORT, 1, value.to_bytes(2, order))


@pytest.mark.parametrize("order", ["little", "big"])
def test_written_block_is_read(order: Order) -> None:
    text = b"Daguerre\0"
    block = write_block(order, [short(order, 6), Tag(MAKE, ASCII, 9, text)], {EXIF_IFD: [short(order, 3)]})
    layout, directory = read(block)
    assert (layout.order, directory.entry_count, directory.following) == (order, 3, 0)
    make, orientation, pointer = directory.entries
    assert layout.read_value(bytes_reader(block), make, 100) == text
    assert layout.read_value(bytes_reader(block), make, 4) == text[:4]
    assert layout.read_value(bytes_reader(block), orientation, 100) == (6).to_bytes(2, order)
    assert (pointer.tag, pointer.kind) == (EXIF_IFD, LONG)
    inner = read_directory(bytes_reader(block), layout, layout.pointer(pointer), max_entries=10)
    assert [entry.tag for entry in inner.entries] == [ORIENTATION]
    assert layout.pack(orientation) in block


def test_truncated_directory_has_no_following() -> None:
    block = write_block("little", [short("little", 6), Tag(MAKE, SHORT, 1, b"\1\0")], {})
    for size in range(8, len(block)):
        _, directory = read(block[:size])
        assert directory.following is None
        assert len(directory.entries) == max(0, min(2, (size - 10) // 12))
    assert read_header(bytes_reader(block[:7])) is None


def test_reader_accepts_a_maximum_of_entries() -> None:
    _, directory = read(write_block("big", [Tag(tag, SHORT, 1, b"\0\1") for tag in range(9)], {}), max_entries=4)
    assert (directory.entry_count, len(directory.entries), directory.following) == (9, 4, None)


def test_chain_of_directories_ends_at_a_loop() -> None:
    loop = b"II*\0" + struct.pack("<I", 8) + (bytes(2) + struct.pack("<I", 14)) + (bytes(2) + struct.pack("<I", 8))
    assert [directory.following for directory in walk_directories(bytes_reader(loop), LAYOUTS[b"II*\0"], 8)] == [14, 8]


def test_big_tiff_offset_beyond_any_file_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(b"MM\0+\0\x08\0\0" + (2**64 - 1).to_bytes(8))
    with path.open("rb") as file:
        header = read_header(file_reader(file.fileno()))
        assert header is not None
        assert read_directory(file_reader(file.fileno()), *header, max_entries=10).entries == []
