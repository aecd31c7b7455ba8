"""Which folders are on a local disk, by the table of mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.storage.local.file_systems import is_local

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /mnt/nfs rw,relatime shared:7 master:2 - nfs4 server:/export rw,vers=4.2
31 30 0:41 / /mnt/nfs/disk rw - xfs /dev/sdb1 rw
32 22 0:42 / /mnt/two\\040words rw - fuse.sshfs host: rw
33 22 0:43 / /mnt/twice rw - ext4 /dev/sdc1 rw
34 22 0:44 / /mnt/twice rw - cifs //server/share rw
a line of a later version
"""


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/srv/images", True),
        ("/mnt/nfs", False),
        ("/mnt/nfs/images", False),
        ("/mnt/nfs-not", True),
        ("/mnt/nfs/disk/images", True),
        ("/mnt/two words/images", False),
        ("/mnt/twice", False),
    ],
)
def test_type_of_the_innermost_mount_decides(tmp_path: Path, folder: str, expected: bool) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert is_local(Path(folder), mounts) is expected


def test_system_without_a_table_has_no_local_disk(tmp_path: Path) -> None:
    assert not is_local(tmp_path, tmp_path / "missing")


def test_link_to_another_disk_counts_as_that_disk(tmp_path: Path) -> None:
    mounts, link = tmp_path / "mountinfo", tmp_path / "link"
    mounts.write_text(MOUNTS)
    link.symlink_to("/mnt/nfs/images")
    assert not is_local(link, mounts)
