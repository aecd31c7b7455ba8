"""The seccomp filter, run as the kernel runs it, for both architectures."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from worker.sandbox import seccomp
from worker.sandbox.seccomp import ALLOWED, BY_ARGUMENT, Numbers

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
X86_64, AARCH64 = (0xC000003E, 0), (0xC00000B7, 1)
THREAD_OF_GLIBC, THREAD_OF_MUSL = 0x3D0F00, 0x7D0F00
ARCHITECTURES = pytest.mark.parametrize(("architecture", "column"), [X86_64, AARCH64])


def run_filter(target: int, column: int, number: int, *arguments: int, architecture: int | None = None) -> int:
    """Returns the action of the filter on a call (linux/filter.h, linux/seccomp.h: struct seccomp_data)."""
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("=iIQ6Q", number, architecture or target, 0, *padded)
    lines = [struct.unpack("=HBBI", line) for line in seccomp.build_filter(target, column)]
    loaded, at = 0, 0
    while True:
        code, if_true, if_false, value = lines[at]
        at += 1
        match code:
            case 0x20:
                (loaded,) = struct.unpack_from("=I", data, value)
            case 0x06:
                return int(value)
            case 0x15:
                at += if_true if loaded == value else if_false
            case 0x35:
                at += if_true if loaded >= value else if_false
            case 0x45:
                at += if_true if loaded & value else if_false
            case _:
                raise AssertionError(code)


def number_of(numbers: Numbers, column: int) -> int:
    number = numbers[column]
    assert number is not None
    return number


@ARCHITECTURES
def test_listed_calls_pass(architecture: int, column: int) -> None:
    for name, numbers in ALLOWED.items():
        if numbers[column] is not None:
            assert run_filter(architecture, column, number_of(numbers, column)) == ALLOW, name


@ARCHITECTURES
def test_other_calls_are_refused(architecture: int, column: int) -> None:
    by_argument = [numbers for numbers, _, _ in BY_ARGUMENT.values()]
    listed = {both[column] for both in (*ALLOWED.values(), *by_argument, seccomp.CLONE, seccomp.TGKILL)}
    for number in set(range(700)) - listed:
        assert run_filter(architecture, column, number) == (EPERM if number < 424 else ENOSYS), number


@ARCHITECTURES
def test_arguments_are_checked(architecture: int, column: int) -> None:
    for name, (numbers, index, values) in BY_ARGUMENT.items():
        number, others = number_of(numbers, column), [7] * index
        for value in values:
            assert run_filter(architecture, column, number, *others, value) == ALLOW, (name, value)
        for value in (0x7FFF, 0xFFFFFFFF, 8, 10, 1024, 1026, 0x5452, 0x40086602):
            assert run_filter(architecture, column, number, *others, value) == EPERM, (name, value)


@ARCHITECTURES
def test_signals_to_others_are_refused(architecture: int, column: int) -> None:
    number = number_of(seccomp.TGKILL, column)
    assert run_filter(architecture, column, number, os.getpid()) == ALLOW
    assert run_filter(architecture, column, number, os.getppid()) == EPERM


@ARCHITECTURES
def test_clone_starts_threads_only(architecture: int, column: int) -> None:
    number = number_of(seccomp.CLONE, column)
    for flags in (THREAD_OF_GLIBC, THREAD_OF_MUSL):
        assert run_filter(architecture, column, number, flags) == ALLOW
        for bit in range(32):  # namespaces, tracing, another parent, a signal at its end
            if not flags >> bit & 1 and 1 << bit != 0x400000:  # CLONE_DETACHED, which has no effect
                assert run_filter(architecture, column, number, flags | 1 << bit) == EPERM, bit
    assert run_filter(architecture, column, number, THREAD_OF_GLIBC & ~0x10000) == EPERM
    assert run_filter(architecture, column, number, 17) == EPERM  # SIGCHLD: a fork


def test_other_architectures_end_the_process() -> None:
    assert run_filter(*X86_64, 0, architecture=0x40000003) == KILL  # i386
    assert run_filter(*AARCH64, 0, architecture=0x40000028) == KILL  # 32-bit ARM


def test_calls_of_x32_are_refused() -> None:
    assert run_filter(*X86_64, 0x40000000) == EPERM
    assert run_filter(*X86_64, 0x40000000 | 41) == EPERM
