"""The type of a file system: whether it is a disk of this machine, or one behind a network or another program."""

from __future__ import annotations

import re
from pathlib import Path

from service.config.settings import Disk

# Others, such as NFS, CIFS and FUSE, may take seconds for a call, or hang.
_LOCAL_TYPES = frozenset(
    {"bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "vfat", "xfs", "zfs"}
)
_MOUNTS = Path("/proc/self/mountinfo")
# proc_pid_mountinfo(5): the fifth field is the mount point, and the one after the separator is the type.
_MOUNT = re.compile(r"(?:\S+ ){4}(?P<point>\S+) .* - (?P<type>\S+) ")
_OCTAL = re.compile(r"\\([0-7]{3})")


def is_local_disk(folder: Path, disk: Disk) -> bool:
    """Returns whether short calls to the disk of the folder may run on the event loop."""
    return is_local(folder) if disk == "auto" else disk == "local"


def is_local(folder: Path, mounts: Path = _MOUNTS) -> bool:
    """Returns whether the folder is on a local disk. If the system has no table of mounts, it is not."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return False
    folder = folder.resolve()
    type_ = ""
    longest = -1
    for line in lines:
        if (match := _MOUNT.match(line)) is None:
            continue
        point = Path(_OCTAL.sub(lambda code: chr(int(code[1], 8)), match["point"]))
        if folder.is_relative_to(point) and len(point.parts) >= longest:  # of two mounts at one point the later counts
            longest, type_ = len(point.parts), match["type"]
    return type_ in _LOCAL_TYPES
