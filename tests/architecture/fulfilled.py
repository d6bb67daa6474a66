"""Which adapter fulfils which port, for mypy to judge; never imported.

Drivers and targets are loaded by their configured names, so nothing else in the code says so.
"""

from __future__ import annotations

from lapilli.adapters.drivers.cinder import CinderDriver
from lapilli.adapters.drivers.filepool import FilePool
from lapilli.adapters.drivers.lvm import Lvm
from lapilli.adapters.drivers.rbd import Rbd
from lapilli.adapters.drivers.sim import Sim
from lapilli.adapters.images import convert, luks
from lapilli.adapters.targets.cinder import CinderTarget
from lapilli.adapters.targets.lio import Lio
from lapilli.adapters.targets.local import Local
from lapilli.adapters.targets.nbd import Nbd
from lapilli.adapters.targets.nvmet import Nvmet
from lapilli.adapters.targets.rbd import RbdTarget
from lapilli.adapters.targets.sim import SimTarget
from lapilli.adapters.targets.tgt import Tgt
from lapilli.ports import driver, images, keys, target


def drivers(a0: FilePool, a1: Sim, a2: Lvm, a3: Rbd, a4: CinderDriver) -> list[driver.Driver]:
    return [a0, a1, a2, a3, a4]


def replacing(a0: FilePool, a1: Sim, a2: Lvm, a3: CinderDriver) -> list[driver.Replacing]:
    return [a0, a1, a2, a3]


def reverting(a0: FilePool, a1: Sim, a2: Lvm, a3: Rbd, a4: CinderDriver) -> list[driver.Reverting]:
    return [a0, a1, a2, a3, a4]


def cloning_images(a0: Rbd) -> list[driver.ImageCloning]:
    return [a0]


def managing(a0: FilePool, a1: Sim, a2: Lvm, a3: Rbd, a4: CinderDriver) -> list[driver.Managing]:
    return [a0, a1, a2, a3, a4]


def targets(
    a0: Tgt, a1: Lio, a2: Nvmet, a3: Nbd, a4: Local, a5: RbdTarget, a6: SimTarget, a7: CinderTarget
) -> list[target.Target]:
    return [a0, a1, a2, a3, a4, a5, a6, a7]


def others(cinder: CinderDriver, nbd: Nbd) -> tuple[object, ...]:
    retyping: driver.Retyping = cinder
    noting: driver.Noting = cinder
    throttling: target.Throttling = nbd
    converter: images.Converter = convert
    open_luks: keys.Luks = luks
    return retyping, noting, throttling, converter, open_luks
