"""What every target does: served, reached by a real initiator, and left as the database says by any kill."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from lapilli.errors import StorageError
from lapilli.ports.target import Target
from tests.contract.conftest import MIB
from tests.contract.targets.conftest import Exportable
from tests.contract.targets.harnesses import Harness, Info
from tests.contract.targets.initiator import guest, info_of, io, length
from tests.contract.targets.kills import killed_before

MOST = 200  # effects that one call may have


def works(harness: Harness, info: Info) -> bool:
    return io(harness, info, "write -P 7 1M 64k", "read -P 7 1M 64k")


def test_what_a_guest_writes_is_in_the_volume_and_the_other_way(
    harness: Harness, target: Target, exportable: Exportable
) -> None:
    spec = exportable(target)
    with open(spec.address.location, "rb+") as file:
        file.write(b"\x05" * (64 << 10))
        file.flush()
        os.fsync(file.fileno())
    target.export(spec)
    info = info_of(harness, target, spec)
    assert io(harness, info, "read -P 5 0 64k", "write -P 7 1M 64k", "flush")
    with open(spec.address.location, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what this host remembers of a device
        file.seek(MIB)
        assert file.read(64 << 10) == b"\x07" * (64 << 10)
    assert length(harness, info) == 64 * MIB


def test_connection_information_is_whole_and_the_same_each_time(
    harness: Harness, target: Target, exportable: Exportable
) -> None:
    spec = exportable(target)
    target.export(spec)
    told = info_of(harness, target, spec)
    assert told == info_of(harness, harness.make(), spec), "it depends on the process that tells it"
    assert told["data"]["volume_id"] == spec.volume_id
    assert told["data"]["access_mode"] == "rw"
    read_only = target.connection_info(spec, harness.connector, access_mode="ro")
    assert read_only["data"]["access_mode"] == "ro"
    msgspec.json.encode(told)  # it is stored


def test_served_volumes_are_listed(harness: Harness, target: Target, exportable: Exportable) -> None:
    one, other = exportable(target), exportable(target)
    target.export(one)
    target.export(other)
    assert target.serves
    assert sorted(target.exports()) == sorted((one.volume_id, other.volume_id))
    assert sorted(harness.make().exports()) == sorted((one.volume_id, other.volume_id))
    target.unexport(one.volume_id, one.data)
    assert list(target.exports()) == [other.volume_id]


def test_exporting_again_disturbs_nobody(harness: Harness, target: Target, exportable: Exportable) -> None:
    spec = exportable(target)
    target.export(spec)
    with guest(harness, info_of(harness, target, spec)) as one:
        one.write(5)
        target.export(spec)
        assert list(harness.make().restore([spec])) == []
        one.read(5)
        assert "nnect" not in one.quit()  # neither disconnected nor reconnected


def test_several_guests_share_one_export(harness: Harness, target: Target, exportable: Exportable) -> None:
    spec = exportable(target)
    target.export(spec)
    target.export(spec)
    info = info_of(harness, target, spec)
    with guest(harness, info) as one, guest(harness, info) as other:
        one.write(5, "0")
        other.read(5, "0")
        other.write(6, "1M")
        one.read(6, "1M")


def test_only_the_right_secret_opens_it(harness: Harness, target: Target, exportable: Exportable) -> None:
    one, other = exportable(target), exportable(target)
    target.export(one)
    target.export(other)
    info, others = info_of(harness, target, one), info_of(harness, target, other)
    assert works(harness, info)
    assert not works(harness, harness.forged(info))
    assert not works(harness, harness.bare(info))
    secrets = {key: value for key, value in others["data"].items() if key.startswith("auth_")}
    assert not works(harness, {**info, "data": {**info["data"], **secrets}}), "another volume's secret"
    assert works(harness, info)


def test_a_secret_is_in_no_log_no_error_and_no_argument(
    harness: Harness, target: Target, exportable: Exportable
) -> None:
    spec = exportable(target)
    target.export(spec)
    assert works(harness, info_of(harness, target, spec))
    missing = msgspec.structs.replace(spec.address, location="/nowhere/at/all")
    with pytest.raises(StorageError) as problem:
        target.export(msgspec.structs.replace(spec, address=missing))
    told = str(problem.value) + "".join(each.read_text() for each in harness.logs()) + "".join(_arguments())
    assert [value for value in spec.secret.values() if len(value) >= 12 and value in told] == []
    assert spec.secret["password"] not in str(spec.data)


def _arguments() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_text(errors="replace")
        except OSError:
            continue  # it has ended


def test_a_volume_grows_under_a_guest(harness: Harness, target: Target, exportable: Exportable) -> None:
    spec = exportable(target)
    target.export(spec)
    info = info_of(harness, target, spec)
    with guest(harness, info) as one:
        one.write(5)
        harness.grow(spec.address, 128)
        target.resize(spec, 128 * MIB)
        one.read(5)
        one.write(6)
        assert "nnect" not in one.quit()
    target.exports()  # as the service asks again and again
    assert length(harness, info) == 128 * MIB
    assert io(harness, info, "read -P 6 0 64k", "write -P 8 100M 64k", "read -P 8 100M 64k")


def test_growing_what_is_not_exported_is_no_fault(
    harness: Harness, target: Target, exportable: Exportable
) -> None:
    spec = exportable(target)
    target.resize(spec, 64 * MIB)
    assert list(target.exports()) == []
    assert harness.leftovers(spec.volume_id) == []


def test_what_is_no_longer_exported_cannot_be_reached(
    harness: Harness, target: Target, exportable: Exportable
) -> None:
    spec, other = exportable(target), exportable(target)
    target.export(spec)
    target.export(other)
    info = info_of(harness, target, spec)
    assert works(harness, info)
    target.unexport(spec.volume_id, spec.data)
    assert not io(harness, info, "read 0 4k")
    target.unexport(spec.volume_id, spec.data)
    target.unexport(spec.volume_id, {})  # as of one that nobody knows any more
    assert harness.leftovers(spec.volume_id) == []
    assert works(harness, info_of(harness, target, other))


def test_unexport_cuts_a_session_off(harness: Harness, target: Target, exportable: Exportable) -> None:
    spec = exportable(target)
    target.export(spec)
    with guest(harness, info_of(harness, target, spec)) as one:
        one.write(5)
        target.unexport(spec.volume_id, spec.data)
        assert one.is_cut_off()
    assert harness.leftovers(spec.volume_id) == []


def test_after_a_power_failure_exactly_what_is_wanted_is_served(
    harness: Harness, target: Target, exportable: Exportable
) -> None:
    kept, stray, fresh = (exportable(target) for _ in range(3))
    target.export(kept)
    target.export(stray)
    before = info_of(harness, target, kept)
    harness.perish()
    again = harness.make()
    again.start()
    assert len(again.restore([kept])) >= 1
    assert info_of(harness, again, kept) == before, "a guest looks for it where it was"
    assert works(harness, before)
    assert not io(harness, info_of(harness, again, stray), "read 0 4k")
    again.export(stray)
    said = again.restore([kept, fresh])
    assert len(said) == 2
    assert set(again.exports()) == {kept.volume_id, fresh.volume_id}
    assert works(harness, info_of(harness, again, fresh))
    assert not io(harness, info_of(harness, again, stray), "read 0 4k")
    assert harness.leftovers(stray.volume_id) == []
    assert list(again.restore([kept, fresh])) == []
    told = again.restore([kept], [fresh.volume_id])
    assert list(told) == [], "an export of which nobody can tell how it is wanted stays as it is"
    assert works(harness, info_of(harness, again, fresh))


def test_one_volume_that_cannot_be_served_keeps_no_other_from_its_guest(
    harness: Harness, target: Target, exportable: Exportable
) -> None:
    broken, good = exportable(target), exportable(target)
    harness.remove(broken.address)
    said = target.restore([broken, good])
    assert len(said) == 2
    assert list(target.exports()) == [good.volume_id]
    with pytest.raises(StorageError):
        target.export(broken)


def test_an_export_that_another_kind_of_target_has_made_is_told(
    harness: Harness, target: Target, exportable: Exportable
) -> None:
    good = exportable(target)
    foreign = [msgspec.structs.replace(exportable(target), data={"another": "kind"})]
    if "lun" in good.data:
        # tgt and lio name a volume's target alike, but its unit has another number: hosts would find none
        other = exportable(target)
        data = {**other.data, "lun": 1 - other.data["lun"]}
        foreign.append(msgspec.structs.replace(other, data=data))
    assert len(target.restore([*foreign, good])) == len(foreign) + 1
    assert list(target.exports()) == [good.volume_id]
    assert works(harness, info_of(harness, target, good))
    for each in foreign:
        with pytest.raises(StorageError, match="another kind"):
            target.export(each)
        with pytest.raises(StorageError, match="another kind"):
            info_of(harness, target, each)
        target.unexport(each.volume_id, each.data)  # it can be detached
    assert list(target.exports()) == [good.volume_id]


def test_back_ends_of_one_host_leave_each_other_alone(
    harness: Harness, target: Target, exportable: Exportable
) -> None:
    other = harness.make("other")
    other.start()
    mine, theirs = exportable(target), exportable(other)
    target.export(mine)
    other.export(theirs)
    assert list(target.restore([mine])) == []
    assert list(target.exports()) == [mine.volume_id]
    assert list(other.exports()) == [theirs.volume_id]
    assert works(harness, info_of(harness, other, theirs))
    assert len(other.restore([])) == 1
    assert works(harness, info_of(harness, target, mine))


def test_a_volume_that_moved_is_served_from_its_new_place(
    harness: Harness, target: Target, exportable: Exportable
) -> None:
    spec = exportable(target)
    target.export(spec)
    elsewhere = msgspec.structs.replace(spec, address=harness.volume(32))
    target.export(elsewhere)
    info = info_of(harness, target, elsewhere)
    assert length(harness, info) == 32 * MIB
    assert works(harness, info)


def test_the_service_may_be_restarted_under_a_guest(
    harness: Harness, target: Target, exportable: Exportable
) -> None:
    spec = exportable(target)
    target.export(spec)
    with guest(harness, info_of(harness, target, spec)) as one:
        one.write(5)
        target.stop()
        successor = harness.make()
        successor.start()
        assert list(successor.restore([spec])) == []
        assert list(successor.exports()) == [spec.volume_id]
        one.read(5)
        one.write(6)


def test_processes_that_export_at_once(harness: Harness, target: Target, exportable: Exportable) -> None:
    specs = [exportable(target) for _ in range(8)]
    children = []
    for spec in specs:
        child = os.fork()
        if child == 0:  # pragma: no cover - it ends here
            try:
                target.export(spec)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert set(target.exports()) == {spec.volume_id for spec in specs}
    assert works(harness, info_of(harness, target, specs[0]))


@pytest.mark.parametrize("after", ["exported", "dropped"])
def test_killed_before_each_effect_of_an_export(
    harness: Harness, target: Target, exportable: Exportable, after: str
) -> None:
    first = 1 if after == "exported" else harness.step
    for at in range(first, MOST, harness.step):
        spec = exportable(target)
        killed = killed_before(at, lambda spec=spec: target.export(spec), harness.effects)  # type: ignore[misc]
        again = harness.make()
        info = info_of(harness, again, spec)
        assert not spec.secret or not io(harness, harness.bare(info), "read 0 4k"), f"open to all at {at}"
        if after == "exported":  # the work is resumed
            again.export(spec)
            assert works(harness, info), f"not repaired after a kill before effect {at}"
            again.unexport(spec.volume_id, spec.data)
        else:  # the work is undone, or nobody knows of it at the start
            again.restore([]) if at // harness.step % 2 else again.unexport(spec.volume_id, spec.data)
        assert list(again.exports()) == []
        assert harness.leftovers(spec.volume_id) == [], f"after a kill before effect {at}"
        if not killed:
            return
    pytest.fail("it never came to its end")


def test_killed_before_each_effect_of_an_unexport(
    harness: Harness, target: Target, exportable: Exportable
) -> None:
    for at in range(1, MOST):
        spec = exportable(target)
        target.export(spec)
        info = info_of(harness, target, spec)
        killed = killed_before(
            at,
            lambda spec=spec: target.unexport(spec.volume_id, spec.data),  # type: ignore[misc]
            harness.effects,
        )
        assert not spec.secret or not io(harness, harness.bare(info), "read 0 4k"), f"open to all at {at}"
        again = harness.make()
        if at % 2:  # the work is resumed
            again.unexport(spec.volume_id, spec.data)
        else:  # somebody has asked for it anew meanwhile, and then not any more
            again.export(spec)
            assert works(harness, info), f"not served again after a kill before effect {at}"
            again.restore([])
        assert list(again.exports()) == []
        assert harness.leftovers(spec.volume_id) == [], f"after a kill before effect {at}"
        if not killed:
            return
    pytest.fail("it never came to its end")
