"""`make test-vm`: what needs Linux's own storage, in a virtual machine that runs Debian's kernel.

    python -m tests.vm [--minutes 30] [--quick | --bench | --shell COMMAND] [words for pytest]

LVM, LIO, nvmet and their initiators need kernel modules that a container or a builder has not. So virtme-ng
boots Debian's kernel with this machine's own files, by software emulation, and everything runs in that one
boot: about 20 s until the first test. What the guest writes is gone with it, but for `build/vm`. The last
line is `passed=N failed=N skipped=N`; the exit status is 1 for any failure, and where the guest hangs or
dies.

`guest/init` runs in the guest. It sources each of `guest/parts/*.sh`, which prepare it, and starts pytest.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

from tests.clouds import machine

ROOT = machine.ROOT
HERE = Path(__file__).parent
OUTPUT = ROOT / "build" / "vm"  # the only place that the guest shares with us for writing
BACKENDS = "lvm-thin,lvm-thick"  # of the drivers' suite
# what runs side by side, each in volume groups of its own: back ends, and tests. The kernel's targets
# are in one suite: everything that they serve is removed after a test
QUICK: list[tuple[str, list[str]]] = [
    (
        BACKENDS,
        ["tests/vm/test_service.py", "tests/vm/test_targets.py", "tests/contract/targets/test_contract.py"],
    ),
    ("lvm-thin", ["tests/contract/drivers"]),
]
SUITES = [
    *QUICK,
    ("lvm-thick", ["tests/contract/drivers"]),
    ("lvm-thin", ["tests/vm/test_lvm.py", "tests/vm/test_dm_crypt.py"]),
]
PACKAGES = (
    "linux-image-amd64",  # the cloud flavour has no 9p
    "busybox-static",  # virtme-ng makes an initramfs with it
    "qemu-system-x86",
    "udev",
    "lvm2",
    "thin-provisioning-tools",
    "cryptsetup-bin",
    "xfsprogs",
    "sudo",
    "qemu-utils",
    "qemu-block-extra",
    "tgt",
    "libiscsi-bin",
    "open-iscsi",
    "nvme-cli",
    "lsscsi",  # os-brick asks it
)
DISKS = {
    "lvm": "40G",
    "thin": "400G",
    "thick": "400G",
    "other": "4G",
    "service": "8G",
    "files": "40G",
}  # sparse; /dev/disk/by-id/virtio-NAME in the guest
# without AVX: emulated, the string functions of libc that use it are slower than the plain ones
QEMU = ("-cpu", "Nehalem", "-accel", "tcg,thread=multi,tb-size=512")
# nor what guards against other tenants of a processor, nor what saves power: device mapper waits for RCU
KERNEL = "mitigations=off rcupdate.rcu_expedited=1 tsc=reliable"


def main(words: list[str]) -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description="Run tests in a virtual machine.")
    parser.add_argument("--minutes", type=float, default=30, help="after which the guest is ended")
    parser.add_argument("--quick", action="store_true", help="without thick volumes, and LVM's own tests")
    parser.add_argument("--shell", metavar="COMMAND", help="run this in the guest, and not the tests")
    parser.add_argument(
        "--bench", action="store_true", help="measure LVM and targets instead; figures in build/vm"
    )
    chosen, rest = parser.parse_known_args(words)
    if chosen.bench:
        chosen.shell = " && ".join(bench())
    signal.signal(signal.SIGTERM, _end)
    machine.packages(*PACKAGES)
    tools = machine.environment("virtme-ng", HERE / "requirements")
    machine.environment("cinder")  # for its os-brick: in the guest there is nowhere to install from
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    suites = QUICK if chosen.quick else SUITES
    if any(word.startswith("tests/") for word in rest):
        suites = [(BACKENDS, [])]
    (OUTPUT / "command").write_text(chosen.shell or side_by_side(suites, rest))
    if chosen.shell is None:
        compile_all({word for _, words in suites for word in words} | set(rest))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lapilli-vm-") as directory:
        ended = boot(tools, Path(directory), chosen.minutes * 60)
    print(f"the virtual machine ran for {time.monotonic() - began:.0f} s", flush=True)
    status = OUTPUT / "status"
    if not ended or not status.exists():
        print("it did not come to its end; its kernel said last:", *kernel_said(), sep="\n")
    if chosen.shell is not None:
        return int(status.read_text()) if status.exists() else 1
    if "LAPILLI_WRITE_BACKENDS" in os.environ and (OUTPUT / "drivers.json").exists():
        for kind in ("drivers", "targets"):
            shutil.copy(OUTPUT / f"{kind}.json", ROOT / f"tests/contract/{kind}/results.json")
    return counted(len(suites), complete=ended and status.exists() and status.read_text() == "0\n")


def side_by_side(suites: list[tuple[str, list[str]]], rest: list[str]) -> str:
    """A script that runs the suites at once: each waits most of the time for one program after another."""
    lines = ["status=0"]
    for number, (backends, words) in enumerate(suites):
        report = ["-v", f"--junit-xml={OUTPUT}/results-{number}.xml", "--durations=10"]
        report += ["-o", "faulthandler_timeout=240"]
        told = f"{OUTPUT}/tests-{number}.log"  # one process would write into the lines of the other
        run = f"LAPILLI_BACKENDS={backends} {shlex.join(pytest_of([*report, *words, *rest]))}"
        lines += [f"({run} 2>&1 | tee {told} | grep --line-buffered '::'; exit ${{PIPESTATUS[0]}}) &"]
    lines += ["for each in $(jobs -p); do wait $each || status=1; done"]
    for kind in ("drivers", "targets"):
        lines += [f"cp tests/contract/{kind}/results.json {OUTPUT}/{kind}.json"]
    lines += ["exit $status", ""]
    return "\n".join(lines)


def pytest_of(words: list[str]) -> list[str]:
    """Command of the tests in the guest."""
    python = str(Path(sys.executable).absolute())  # not resolved: a virtual environment goes by its path
    return [python, "-m", "pytest", "-p", "no:cacheprovider", *words]


def bench() -> Iterator[str]:
    """Commands that measure snapshots and clones, of which a thick one of 100 GiB is a copy of 100 GiB, and
    attachments by the kernel's targets beside the others."""
    for name, sizes in (("lvm-thin", "1,100"), ("lvm-thick", "1")):
        words = ["bench/storage.py", f"tests/vm/{name}.conf", "--sizes", sizes, "--rounds", "3"]
        yield shlex.join([sys.executable, *words, "--output", str(OUTPUT / f"{name}.json")])
    words = ["bench/run.py", "--size", "tiny", "--only", "targets", "--targets", "tgt,nbd,local,lio,nvmet"]
    yield shlex.join(
        [sys.executable, *words, "--pool", "/run/lapilli/tmp", "--output", str(OUTPUT / "targets.json")]
    )


def compile_all(words: Iterable[str]) -> None:
    """Write the bytecode of package and tests here, where it costs less than in the guest."""
    subprocess.run([sys.executable, "-m", "compileall", "-q", "lapilli", "tests"], cwd=ROOT, check=True)
    command = [*pytest_of(words), "--collect-only", "-q"]
    told = subprocess.run(command, cwd=ROOT, env={**os.environ, **inside()}, capture_output=True, text=True)
    if told.returncode:
        raise SystemExit(f"the tests cannot be collected:\n{told.stdout[-3000:]}{told.stderr[-1000:]}")


def inside() -> dict[str, str]:
    """What the tests in the guest find in their environment."""
    return {
        "LAPILLI_IN_VM": "1",
        "LAPILLI_TARGETS": "lio,nvmet",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # their imports take longer than some tests
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "LAPILLI_BACKENDS": BACKENDS,
        **{name: value for name, value in os.environ.items() if name.startswith("LAPILLI_")},
    }


def boot(tools: Path, directory: Path, seconds: float) -> bool:
    """Boot, and show what it says; whether it ended by itself in time."""
    variables = {**inside(), "LAPILLI_ROOT": str(ROOT), "LAPILLI_OUTPUT": str(OUTPUT)}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
    (OUTPUT / "environment").write_text("".join(lines))
    command = [tools / "bin/vng", "--disable-kvm", "--force-9p", "--verbose"]
    command += ["--append", KERNEL]
    command += [
        "--run",
        kernel(),
        "--memory",
        "4G",
        "--cpus",
        "2",
        f"--qemu-opts={' '.join(hardware(directory))}",
    ]
    command += ["--cwd", ROOT, "--", f"bash {HERE / 'guest/init'} {OUTPUT / 'environment'}"]
    guest = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PATH": f"{tools / 'bin'}:/usr/sbin:/sbin:{os.environ['PATH']}"},
        start_new_session=True,
    )
    clock = threading.Timer(seconds, _kill, [guest])
    clock.start()
    try:
        show(guest)
        return clock.is_alive() and guest.wait() == 0
    finally:
        clock.cancel()
        _kill(guest)
        guest.wait()


def hardware(directory: Path) -> Iterator[str]:
    """Disks that are thrown away; this machine's files once more, of which the guest may keep in memory what
    it has read; the one directory that it writes to."""
    yield from QEMU
    for tag, path, mode in (("lapilli-root", "/", "on"), ("lapilli-output", OUTPUT, "off")):
        yield f"-fsdev local,id={tag},path={path},security_model=none,readonly={mode},multidevs=remap"
        yield f"-device virtio-9p-pci,fsdev={tag},mount_tag={tag}"
    for name, size in DISKS.items():
        path = directory / name
        subprocess.run(["truncate", "-s", size, path], check=True)
        sparse = "cache=unsafe,discard=unmap,detect-zeroes=unmap"
        yield f"-drive file={path},format=raw,if=none,id={name},{sparse}"
        yield f"-device virtio-blk-pci,drive={name},serial={name}"


def kernel() -> Path:
    """Debian's newest kernel here."""
    found = [each for each in Path("/boot").glob("vmlinuz-*-amd64") if "cloud" not in each.name]
    if not found:
        raise SystemExit("there is no kernel in /boot")
    return max(found, key=lambda each: [int(part) for part in re.findall(r"\d+", each.name)])


def show(guest: subprocess.Popen[str]) -> None:
    """Print what the tests say; what the kernel says goes to a file."""
    assert guest.stdout is not None
    with (OUTPUT / "kernel.log").open("w") as log:
        for line in guest.stdout:
            if re.match(r"\r?\[ *\d+\.\d+\] ", line):
                log.write(line.lstrip("\r"))
                log.flush()
            else:
                print(line, end="", flush=True)


def kernel_said() -> list[str]:
    """The end of the kernel's log."""
    path = OUTPUT / "kernel.log"
    return path.read_text(errors="replace").splitlines()[-20:] if path.exists() else []


def counted(suites: int, *, complete: bool) -> int:
    """Print what each suite said at its end, and the counts; the exit status."""
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for number in range(suites):
        report, told = OUTPUT / f"results-{number}.xml", OUTPUT / f"tests-{number}.log"
        print(*after_the_tests(told.read_text(errors="replace") if told.exists() else ""), sep="\n")
        if not report.exists():
            complete = False
            continue
        for suite in ET.parse(report).getroot().iter("testsuite"):  # noqa: S314 - our own file
            for name in counts:
                counts[name] += int(suite.get(name, 0))
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    print(f"passed={passed} failed={failed} skipped={counts['skipped']}", flush=True)
    return 0 if complete and passed and not failed else 1


def after_the_tests(told: str) -> list[str]:
    """Of what pytest prints: failures, durations, and what was skipped."""
    lines = told.splitlines()
    tests = [
        number for number, line in enumerate(lines) if re.search(r"::.* (PASSED|FAILED|ERROR|SKIPPED)", line)
    ]
    return lines[tests[-1] + 1 :] if tests else lines[-50:]


def _kill(guest: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(guest.pid, signal.SIGKILL)


def _end(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
