"""What the other tests of this directory stand on."""

from __future__ import annotations

import subprocess


def test_a_snapshot_of_a_thin_volume() -> None:
    """With the kernel's device mapper, LVM's programs and udev's links."""
    group = "lapilli-test"
    try:
        for command in (
            ["lvcreate", "-q", "-L", "1G", "-T", f"{group}/pool"],
            ["lvcreate", "-q", "-T", "-V", "10G", "-n", "one", f"{group}/pool"],
            ["dd", "if=/etc/hostname", f"of=/dev/{group}/one", "conv=fsync"],
            ["lvcreate", "-q", "-s", "-kn", "-n", "two", f"{group}/one"],
            ["cmp", "-n", "4096", f"/dev/{group}/one", f"/dev/{group}/two"],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
    finally:
        subprocess.run(["lvremove", "-q", "--yes", group], check=True)
