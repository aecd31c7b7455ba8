"""What code in the sandbox cannot do, tried in a real process, and what it still can."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.ids import ImageId
from service.renditions.transformation import Transformation, Watermark
from service.storage.local.originals import LocalOriginals
from tests.conftest import skip_or_fail
from tests.integration.sandbox.conftest import NewPool
from tests.support import pictures
from tests.support.decoders import until
from tests.support.processes import is_alive
from tests.support.samples import jpeg, slow_svg
from worker import imaging
from worker.file_headers import PictureFile
from worker.sandbox import confinement, limits
from worker.sandbox.decoder import DecoderFailed
from worker.sandbox.messages import ProbeRequest, Response
from worker.sandbox.pool import DecoderPool
from worker.sandbox.process import DecoderProcess, decoder_environment

pytestmark = pytest.mark.slow

linux = pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are Linux's")

# Python that runs in the sandbox, and the error that it gets. `picture` is the path of its picture, and `fd` the open
# descriptor of it.
FORBIDDEN = {
    "write in /tmp": ("open('/tmp/daguerre-confined', 'w')", "EACCES"),
    "write in the storage": ("open(storage / 'new', 'w')", "EACCES"),
    "write in the home folder": ("open(home / 'daguerre-confined', 'w')", "EACCES"),
    "read a picture by its name": ("open(picture, 'rb')", "EACCES"),
    "overwrite a picture": ("open(picture, 'r+')", "EACCES"),
    "truncate a picture": ("os.truncate(picture, 0)", "EPERM"),
    "remove a picture": ("os.remove(picture)", "EPERM"),
    "rename a picture": ("os.rename(picture, storage / 'new')", "EPERM"),
    "link a picture": ("os.link(picture, storage / 'new')", "EPERM"),
    "make a symbolic link": ("os.symlink('/etc', storage / 'new')", "EPERM"),
    "make a folder": ("os.mkdir(storage / 'new')", "EPERM"),
    "change a picture's mode": ("os.chmod(picture, 0)", "EPERM"),
    "change a picture's owner": ("os.chown(picture, os.getuid(), os.getgid())", "EPERM"),
    "change a picture's times": ("os.utime(picture)", "EPERM"),
    "change a picture's attributes": ("os.setxattr(picture, 'user.a', b'')", "EPERM"),
    "overwrite its picture": ("os.write(fd, b'x')", "EBADF"),
    "overwrite its picture in memory": ("mmap.mmap(fd, 0)", "EACCES"),
    "truncate its picture": ("os.ftruncate(fd, 0)", "EPERM"),
    "change the mode of its picture": ("os.fchmod(fd, 0)", "EPERM"),
    "change the times of its picture": ("os.utime(fd)", "EPERM"),
    "change the attributes of its picture": ("os.setxattr(fd, 'user.a', b'')", "EPERM"),
    "change the flags of its picture": ("fcntl.ioctl(fd, 0x40086602, 0)", "EPERM"),
    "lock its picture": ("fcntl.flock(fd, fcntl.LOCK_EX)", "EPERM"),
    "lock a part of its picture": ("fcntl.lockf(fd, fcntl.LOCK_SH)", "EPERM"),
    "take a lease on its picture": ("fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)", "EPERM"),
    "own the signals of its picture": ("fcntl.fcntl(fd, fcntl.F_SETOWN, os.getppid())", "EPERM"),
    "choose a signal of its picture": ("fcntl.fcntl(fd, fcntl.F_SETSIG, 9)", "EPERM"),
    "have signals sent": ("fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC)", "EPERM"),
    "open its picture anew": ("open(f'/proc/self/fd/{fd}', 'r+b')", "EACCES"),
    "list the storage": ("os.listdir(storage)", "EACCES"),
    "watch the storage": ("call(libc.inotify_init1, 0)", "EPERM"),
    "watch all files": ("call(libc.fanotify_init, 0x200, 0)", "EPERM"),
    "watch a folder": ("fcntl.fcntl(os.open('/usr/lib', 0), fcntl.F_NOTIFY, 2)", "EPERM"),
    "enter the storage": ("os.chdir(storage)", "EPERM"),
    "read /etc/passwd": ("open('/etc/passwd')", "EACCES"),
    "list the home folder": ("os.listdir(home)", "EACCES"),
    "read what lies beside the storage": ("open(storage.parent / 'secret')", "EACCES"),
    "read through a link out of the storage": ("open(storage / 'link')", "EACCES"),
    "read the worker's environment": ("open(f'/proc/{os.getppid()}/environ')", "EACCES"),
    "read the worker's memory": ("open(f'/proc/{os.getppid()}/mem', 'rb')", "EACCES"),
    "see which files the worker has open": ("os.readlink(f'/proc/{os.getppid()}/fd/0')", "EACCES"),
    "list the processes": ("os.listdir('/proc')", "EACCES"),
    "open a TCP socket": ("socket.socket()", "EPERM"),
    "open a UDP socket": ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "EPERM"),
    "open an IPv6 socket": ("socket.socket(socket.AF_INET6)", "EPERM"),
    "open a Unix socket": ("socket.socket(socket.AF_UNIX)", "EPERM"),
    "open a pair of sockets": ("socket.socketpair()", "EPERM"),
    "send a descriptor": ("call(libc.sendmsg, 0, None, 0)", "EPERM"),
    "receive a descriptor from elsewhere": ("call(libc.recvmsg, fd, None, 0)", "EPERM"),
    "become another program": ("os.execv('/bin/true', ['true'])", "EPERM"),
    "fork": ("os.fork() or os._exit(0)", "EPERM"),
    "start a program": ("subprocess.run(['/bin/true'])", "EPERM"),
    "start a program by another way": ("os.posix_spawn('/bin/true', ['true'], {})", "EPERM"),
    "start a process that is no thread": ("call(libc.syscall, numbers['clone'], 17, 0, 0, 0, 0)", "EPERM"),
    "start a thread in other namespaces": ("call(libc.syscall, numbers['clone'], 0x10030F00, 0, 0, 0, 0)", "EPERM"),
    "trace the worker": ("call(libc.ptrace, 16, os.getppid(), None, None)", "EPERM"),
    "signal the worker": ("os.kill(os.getppid(), 0)", "EPERM"),
    "signal a thread of the worker": ("call(libc.tgkill, os.getppid(), os.getppid(), 0)", "EPERM"),
    "read the worker's limits": ("resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)", "EPERM"),
    "take the worker's cores": ("os.sched_setaffinity(os.getppid(), [0])", "EPERM"),
    "change the worker's turn": ("os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)", "EPERM"),
    "change the worker's turn at the disk": ("call(libc.syscall, numbers['ioprio_set'], 1, 0, 0)", "EPERM"),
    "share memory": ("call(libc.shmget, 0, 4096, 0o1600)", "EPERM"),
    "read shared memory": ("call(libc.shmat, 0, None, 0o10000)", "EPERM"),
    "remove shared memory": ("call(libc.shmctl, 0, 0, None)", "EPERM"),
    "make semaphores": ("call(libc.semget, 0, 1, 0o1600)", "EPERM"),
    "change semaphores": ("call(libc.semctl, 0, 0, 16, 1)", "EPERM"),
    "make a queue": ("call(libc.msgget, 0, 0o1600)", "EPERM"),
    "read a queue": ("call(libc.msgrcv, 0, bytes(100), 8, 0, 0o4000)", "EPERM"),
    "open a queue by name": ("call(libc.mq_open, b'/daguerre', 0o102, 0o600, None)", "EPERM"),
    "move pages of a pipe": ("call(libc.vmsplice, 1, None, 0, 0)", "EPERM"),
    "move a picture into a pipe": ("call(libc.splice, fd, None, 1, None, 1, 0)", "EPERM"),
    "leave its layout of memory": ("call(libc.personality, 0x0040000)", "EPERM"),
    "mount": ("call(libc.mount, b'none', b'/tmp', b'tmpfs', 0, None)", "EPERM"),
    "get new namespaces": ("call(libc.unshare, 0x10000000)", "EPERM"),
    "load a BPF program": ("call(libc.syscall, numbers['bpf'], 0, None, 0)", "EPERM"),
    "look for keys": ("call(libc.syscall, numbers['keyctl'], 0, -3, 0)", "EPERM"),
    "use io_uring": ("call(libc.syscall, 425, 1, None)", "ENOSYS"),
    "watch events": ("call(libc.syscall, numbers['perf_event_open'], None, 0, -1, -1, 0)", "EPERM"),
    "make a file in memory": ("os.memfd_create('new')", "EPERM"),
    "raise a limit": ("resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))", "ValueError"),
    "open many files": ("[open(os.__file__) for _ in range(100)]", "EMFILE"),
    "take much memory": ("bytearray(5 << 30)", "MemoryError"),
    "get privileges back": ("call(libc.prctl, 8, 0, 0, 0, 0)", "EPERM"),
}
ALLOWED = {
    "read its picture": "os.pread(fd, 100, 0)",
    "map its picture": "mmap.mmap(fd, 0, access=mmap.ACCESS_READ).close()",
    "load code": "__import__('wave')",
    "load more of a package": "__import__('PIL.TgaImagePlugin')",
    "start a thread": "threading.Thread(target=int).start()",
    "random bytes": "open('/dev/urandom', 'rb').read(1)",
    "its own limits": "limits.extend_cpu_limit(5)",
    "signal itself": "call(libc.tgkill, os.getpid(), threading.get_native_id(), 0)",
    "no privilege": "privileges() and fail('EPERM')",
}
# On x86_64 and aarch64, of calls without a function in the C library.
NUMBERS = {
    "clone": (56, 220),
    "ioprio_set": (251, 30),
    "bpf": (321, 280),
    "keyctl": (250, 219),
    "perf_event_open": (298, 241),
}
if os.uname().machine == "x86_64":
    FORBIDDEN["open a socket by x32"] = ("call(libc.syscall, 0x40000000 | 41, 2, 1, 0)", "EPERM")

# Everything is tried twice: in the thread that entered the sandbox, and in one that it starts afterwards.
SCRIPT = """
import ctypes, errno, fcntl, json, mmap, os, resource, socket, subprocess, sys, threading
from pathlib import Path
from worker.file_headers import PictureFile
from worker.sandbox import confinement, limits, seccomp
from worker import imaging

storage, home = Path(sys.argv[1]), Path.home()
picture = storage / "picture"
fd = os.open(picture, os.O_RDONLY)
libc = ctypes.CDLL(None, use_errno=True)
column = os.uname().machine == "aarch64"

def call(function, *args):
    if function(*args) < 0:
        raise OSError(ctypes.get_errno(), "")

def fail(name):
    raise OSError(getattr(errno, name), "")

def privileges():
    held = ctypes.create_string_buffer(24)
    header = (ctypes.c_uint * 2)(0x20080522, 0)
    call(libc.capget, header, held)
    effective = int.from_bytes(held.raw[0:4], "little") | int.from_bytes(held.raw[12:16], "little") << 32
    return effective & ~(1 << 2)  # except CAP_DAC_READ_SEARCH

def call_unlisted():
    named = [*seccomp.ALLOWED.values(), *(entry[0] for entry in seccomp.BY_ARGUMENT.values())]
    listed = {both[column] for both in [*named, seccomp.CLONE, seccomp.TGKILL]}
    probes = {335, 336}  # on x86_64 uprobes and uretprobes, which filters never see: others get SIGILL
    return {number: call_number(number) for number in range(700) if number not in listed | probes}

def call_number(number):
    bad = ctypes.c_long(-1)
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(number, *[bad] * 6) < 0 else "done"

def attempt(code):
    try:
        eval(code)
    except OSError as error:
        return errno.errorcode[error.errno]
    except Exception as error:
        return type(error).__name__
    return "done"

def attempt_all():
    outcomes.append({name: attempt(code) for name, code in attempts.items()})

attempts, numbers = json.load(sys.stdin)
outcomes = []
limits.limit_memory()
imaging.prepare()
threads = len(os.listdir("/proc/self/task"))
missing = confinement.enter_sandbox()
attempt_all()
later = threading.Thread(target=attempt_all)
later.start()
later.join()
unlisted = call_unlisted() if not missing else {}
print(json.dumps({"missing": missing, "threads": threads, "outcomes": outcomes, "unlisted": unlisted}))
"""


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("confined")
    (folder / "secret").write_text("secret")
    storage = folder / "storage"
    storage.mkdir()
    (storage / "picture").write_bytes(jpeg())
    (storage / "link").symlink_to(folder / "secret")
    attempts = {name: code for name, (code, _) in FORBIDDEN.items()} | ALLOWED
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(storage)],
        env=decoder_environment(),
        input=json.dumps([attempts, {name: both[os.uname().machine == "aarch64"] for name, both in NUMBERS.items()}]),
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in storage.iterdir()) == ["link", "picture"]
    found: dict[str, Any] = json.loads(done.stdout)
    if found["missing"]:
        skip_or_fail(f"this kernel lacks {', '.join(found['missing'])}")
    return found


@linux
@pytest.mark.parametrize("name", FORBIDDEN)
def test_sandbox_forbids(tried: dict[str, Any], name: str) -> None:
    assert [outcomes[name] for outcomes in tried["outcomes"]] == [FORBIDDEN[name][1]] * 2


@linux
@pytest.mark.parametrize("name", ALLOWED)
def test_sandbox_allows(tried: dict[str, Any], name: str) -> None:
    assert [outcomes[name] for outcomes in tried["outcomes"]] == ["done"] * 2


@linux
def test_other_calls_are_refused(tried: dict[str, Any]) -> None:
    """Recent calls get ENOSYS, so that a C library that tries them first falls back to older ones."""
    for number, outcome in tried["unlisted"].items():
        assert outcome == ("EPERM" if int(number) < 424 else "ENOSYS"), number
    assert len(tried["unlisted"]) > 500


@linux
def test_no_thread_starts_before_the_sandbox(tried: dict[str, Any]) -> None:
    assert tried["threads"] == 1


@pytest.fixture
async def pool(new_pool: NewPool) -> DecoderPool:
    pool = new_pool(max_pixels=100_000_000, timeout_s=8)
    await pool.start()
    return pool


TEXT = b"""<svg xmlns="http://www.w3.org/2000/svg" width="200" height="60">
<text x="5" y="40" font-family="serif" font-size="30">Daguerre</text></svg>"""


async def test_probes_are_the_same_in_the_sandbox(pool: DecoderPool, tmp_path: Path) -> None:
    storage = LocalOriginals(tmp_path)
    storage.prepare()
    imaging.prepare()
    original, incoming, *_ = await storage.paths_for_decoding(ImageId("picture"))
    for name, data in (pictures.every_format() | {"svg, text": TEXT}).items():
        for path, other in ((incoming, original), (original, incoming)):
            Path(other).unlink(missing_ok=True)
            Path(path).write_bytes(data)
            unconfined = imaging.probe(path, max_pixels=100_000_000)
            assert await pool.probe(original, incoming) == unconfined, name


SHIFT_JIS = '<?xml version="1.0" encoding="Shift_JIS"?><svg xmlns="http://www.w3.org/2000/svg"><text>漢字</text></svg>'
RENDITIONS = [
    *(Transformation(format=form, quality=50, width=40) for form in ("avif", "gif", "jpeg", "png", "webp")),
    Transformation(format="jpeg", quality=80, width=16, height=16, fit="cover", gravity="smart", metadata="keep"),
    Transformation(format="png", quality=80, trim=10.0, rotate=90, blur=20.0, sharpen=2.0, ellipse=True),
    Transformation(format="webp", quality=80, contrast=1.5, watermark=Watermark(ImageId("mark"), opacity=0.5)),
]


async def test_renditions_are_the_same_in_the_sandbox(pool: DecoderPool, tmp_path: Path) -> None:
    imaging.prepare()
    picture, mark = str(tmp_path / "picture"), str(tmp_path / "mark")
    Path(mark).write_bytes(pictures.encode("PNG", pictures.quarters(30, 20)))
    samples = pictures.every_format() | {"svg, text": TEXT, "svg, Shift_JIS": SHIFT_JIS.encode("shift_jis")}
    for name, data in samples.items():
        Path(picture).write_bytes(data)
        assert await pool.find_locations([picture]) == imaging.find_locations(picture), name
        for transformation in RENDITIONS:
            watermark = mark if transformation.watermark else None
            unconfined = imaging.render(picture, transformation, watermark=watermark, max_pixels=100_000_000)
            confined = await pool.render([picture], transformation, watermark and [watermark])
            assert confined == unconfined, (name, transformation)


async def test_tiff_of_many_pages_needs_few_files(pool: DecoderPool, tmp_path: Path) -> None:
    first, *rest = (pictures.quarters(20 + page, 20) for page in range(100))
    (tmp_path / "picture").write_bytes(pictures.encode("TIFF", first, save_all=True, append_images=rest))
    assert (await pool.probe(str(tmp_path / "picture"))).pages == 100


@linux
@pytest.mark.usefixtures("tried")
async def test_limits_are_not_those_of_the_worker(pool: DecoderPool, tmp_path: Path) -> None:
    def read_limits(pid: int) -> list[tuple[int, int]]:
        names = ("AS", "CORE", "CPU", "FSIZE", "NOFILE")
        return [resource.prlimit(pid, getattr(resource, f"RLIMIT_{name}")) for name in names]

    def confined(pid: int) -> list[str]:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return [line for line in lines if line.startswith(("NoNewPrivs", "Seccomp:", "CapEff"))]

    pid = pool.decoders[0].process.pid
    assert pid is not None
    (tmp_path / "picture").write_bytes(jpeg())
    before = read_limits(os.getpid()), confined(os.getpid())
    await pool.probe(str(tmp_path / "picture"))
    assert (read_limits(os.getpid()), confined(os.getpid())) == before
    memory, core, (cpu_s, max_cpu_s), size, files = read_limits(pid)
    assert (memory[1], core[1], size[1], files[1]) == (limits.MEMORY_BYTES, 0, 0, confinement.MAX_OPEN_FILES)
    assert 8 + limits.CPU_MARGIN_S <= cpu_s < 20
    assert max_cpu_s == limits.MAX_CPU_S + 8 + limits.CPU_MARGIN_S
    assert confined(pid) != confined(os.getpid())


async def test_kernel_ends_a_process_at_its_cpu_limit(tmp_path: Path) -> None:
    (tmp_path / "endless").write_bytes(slow_svg(1000))
    (tmp_path / "picture").write_bytes(jpeg())
    process = DecoderProcess(0.1)
    await process.start()
    with PictureFile(str(tmp_path / "picture")) as picture, PictureFile(str(tmp_path / "endless")) as endless:
        process.send([(ProbeRequest(1_000_000), [picture])])
        assert (await process.receive()).probe is not None
        process.send([(ProbeRequest(1_000_000), [endless])])
    with pytest.raises(asyncio.IncompleteReadError):
        await process.receive()
    assert await process.wait() == -signal.SIGXCPU
    await process.stop()


STOPPED_WORKER = """
import asyncio, pathlib, sys
from worker.sandbox.decoder import DecoderFailed
from worker.sandbox.pool import DecoderPool

async def main():
    storage = pathlib.Path(sys.argv[1])
    pool = DecoderPool(1, max_pixels=1_000_000, timeout_s=1)
    await pool.start()
    probing = asyncio.create_task(pool.probe(str(storage / "endless")))
    await asyncio.sleep(0.1)
    print(pool.decoders[0].process.pid, flush=True)
    try:
        await probing
    except DecoderFailed:
        print("failed", (await pool.probe(str(storage / "picture"))).width, flush=True)
    await pool.close()

asyncio.run(main())
"""


@linux
async def test_stopped_worker_finds_its_decoder_failed(
    tmp_path: Path,
) -> None:
    (tmp_path / "endless").write_bytes(slow_svg(1000))
    (tmp_path / "picture").write_bytes(jpeg(120, 80))
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STOPPED_WORKER, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    try:
        decoder = int(await worker.stdout.readline())
        worker.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(40):
            while is_alive(decoder):
                await asyncio.sleep(0.05)
        worker.send_signal(signal.SIGCONT)
        *_, last = (await worker.stdout.read()).splitlines()
        assert last == b"failed 120"
    finally:
        if worker.returncode is None:
            worker.kill()
        await worker.wait()


@linux
async def test_cpu_limit_ends_one_process_only(pool: DecoderPool, tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(jpeg(120, 80))
    (tmp_path / "endless").write_bytes(slow_svg(1000))
    pid = pool.decoders[0].process.pid
    assert pid is not None
    probing = asyncio.create_task(pool.probe(str(tmp_path / "endless")))
    await until(lambda: pool.decoders[0].current_s > 0.3)  # it has raised its limit for this picture
    resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1))
    with pytest.raises(DecoderFailed):
        await probing
    assert (await pool.probe(str(tmp_path / "picture"))).width == 120
    assert pool.decoders[0].process.pid != pid


async def test_storage_that_is_mounted_later_is_read(new_pool: NewPool, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    pool = new_pool()
    await pool.start()
    storage.rename(tmp_path / "before")
    storage.mkdir()
    (storage / "picture").write_bytes(jpeg(120, 80))
    assert (await pool.probe(str(storage / "picture"))).width == 120


async def test_much_output_does_not_block_a_decoder(
    new_pool: NewPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chatty = tmp_path / "python"
    chatty.write_text(f'#!/bin/sh\nhead -c 1000000 /dev/zero >&2\nexec "{sys.executable}" "$@"\n')
    chatty.chmod(0o755)
    (tmp_path / "picture").write_bytes(jpeg(120, 80))
    monkeypatch.setattr(sys, "executable", str(chatty))
    pool = new_pool()
    assert (await pool.probe(str(tmp_path / "picture"))).width == 120


async def test_stderr_of_a_failure_is_logged(new_pool: NewPool, tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(jpeg())
    pool = new_pool(max_pixels="many")
    with capture_logs() as logs, pytest.raises(DecoderFailed):
        await pool.probe(str(tmp_path / "picture"))
    [line] = [line for line in logs if line["event"] == "decoder.failed"]
    assert "ValidationError" in line["stderr"]
    assert line["stderr"].isprintable()
    assert len(line["stderr"]) <= 1000


async def test_incomplete_sandbox_is_logged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(_: DecoderProcess) -> Response:
        return Response.greeting(cpu_s=0, missing=["Landlock"])

    monkeypatch.setattr(DecoderProcess, "start", start)
    with capture_logs() as logs:
        await DecoderPool(3, max_pixels=1, timeout_s=1).start()
    assert [(line["event"], line["missing"]) for line in logs] == [("sandbox.incomplete", ["Landlock"])]


@pytest.mark.parametrize(
    ("lacking", "missing"),
    [
        ("sys.platform = 'darwin'", ["Landlock", "seccomp"]),
        ("seccomp._ARCHITECTURES.clear()", ["seccomp"]),
        ("confinement._CREATE_RULESET = 999", ["Landlock"]),
        (
            "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
            ["other threads"],
        ),
    ],
)
@linux
@pytest.mark.usefixtures("tried")
def test_rest_of_an_incomplete_sandbox_holds(lacking: str, missing: list[str]) -> None:
    script = (
        "import resource, sys\nfrom worker.sandbox import confinement, limits, seccomp\n"
        f"{lacking}\nprint(confinement.enter_sandbox())\n"
        "assert resource.getrlimit(resource.RLIMIT_FSIZE) == (0, 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{missing}\n"), done.stderr
