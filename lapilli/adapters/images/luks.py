"""Encrypted volumes, written in user space: cryptsetup makes the header, qemu-img writes the data behind it.

The header is made in a file in memory and laid at the volume's start, wherever that is, so that nothing needs
device-mapper. QEMU reads and writes LUKS 1 only: a LUKS 2 volume is filled as LUKS 1 with a header of the
same room, which cryptsetup then converts; the data are encrypted in the same way in both.

The passphrase is the key in hexadecimal digits, as OpenStack's hypervisors expect it. It comes to the
programs in a file in memory.
"""

from __future__ import annotations

from lapilli.adapters import command, qemu, qemu_img
from lapilli.adapters.images import convert
from lapilli.domain.encryption import Layout
from lapilli.ports.driver import BlockAddress, Progress

_SECTOR = 512
_LIMITS = {"timeout": 120.0, "cpu": 60}
_ITERATIONS = "1000"  # the least that there is: nobody guesses a passphrase that is a random key


def format(
    destination: BlockAddress,
    layout: Layout,
    key: bytes,
    progress: Progress,
    image: tuple[str, str] | None = None,
) -> None:
    """See `ports.keys.Luks`."""
    with command.in_memory(length=layout.header) as header, command.in_memory(key.hex().encode()) as secret:
        _make_header(header, layout, secret)
        if image is not None:
            _lay(header, destination)
            path, declared_format = image
            sealed = qemu.image_options(destination, driver="luks", **{"key-secret": "key"})
            convert.write(path, declared_format, sealed, progress, secret)
        if layout.format == "luks2":
            _cryptsetup("convert", "--type", "luks2", header.path, handed=(header,))
        if image is None or layout.format == "luks2":
            _lay(header, destination)
    qemu_img.sync(destination)


def _make_header(header: command.MemoryFile, layout: Layout, secret: command.MemoryFile) -> None:
    _cryptsetup(
        "luksFormat",
        *("--type", "luks1", "--offset", str(layout.header // _SECTOR)),
        *("--cipher", layout.cipher, "--key-size", str(layout.key_size)),
        *("--pbkdf-force-iterations", _ITERATIONS, "--key-file", secret.path),
        header.path,
        handed=(header, secret),
    )


def _cryptsetup(action: str, *arguments: str, handed: tuple[command.MemoryFile, ...]) -> None:
    # nobody else knows the file: there is nothing to lock, and the place of locks is often not ours
    words = ["cryptsetup", action, "--batch-mode", "--disable-locks", *arguments]
    command.run(words, handed=handed, **_LIMITS)  # type: ignore[arg-type]


def _lay(header: command.MemoryFile, destination: BlockAddress) -> None:
    """Write the header over the volume's start."""
    options = ["-n", "-t", "writeback", "-f", "raw", "--target-image-opts"]
    words = ["qemu-img", "convert", *options, header.path, qemu.image_options(destination)]
    command.run(words, handed=(header,), **_LIMITS)  # type: ignore[arg-type]
