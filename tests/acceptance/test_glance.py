"""The image source on a real Glance: whose images are met, what is checked, what happens when it fails."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from lapilli.adapters.images.glance import GlanceImages
from lapilli.adapters.images.image_api import GlanceOptions, ServiceUserOptions
from lapilli.context import Context, Token
from lapilli.domain.model import Image
from lapilli.errors import (
    Conflict,
    Forbidden,
    ImageServiceUnavailable,
    ImageUnacceptable,
    InvalidInput,
    StorageError,
    Unauthorized,
)
from tests.clouds.cloud import Cloud

MIB = 1 << 20
CONTENT = os.urandom(MIB) + bytes(3 * MIB) + b"the end"


def quiet(_done: int, _total: int) -> None:
    pass


def service_user(cloud: Cloud) -> ServiceUserOptions:
    told = cloud.authentication()
    return ServiceUserOptions(
        auth_url=told["auth_url"],
        username=told["username"],
        password=told["password"],
        region_name=told["region_name"],
        interface="public",
    )


def source(cloud: Cloud, scratch: Path, **options: Any) -> GlanceImages:
    return GlanceImages(GlanceOptions(**options), service_user(cloud), str(scratch))


@pytest.fixture
def images(cloud: Cloud, tmp_path: Path) -> GlanceImages:
    return source(cloud, tmp_path / "scratch")


@pytest.fixture(scope="module")
def demo(cloud: Cloud) -> Iterator[Any]:
    with cloud.connect("demo", "demo") as connection:
        yield connection


@pytest.fixture(scope="module")
def admin(cloud: Cloud) -> Iterator[Any]:
    with cloud.connect() as connection:
        yield connection


def asking(connection: Any, *roles: str) -> Context:
    """Who a connection's user is, with the token that a request would bring."""
    return Context(
        user_id=connection.current_user_id,
        project_id=connection.current_project_id,
        roles=frozenset(roles or ("member",)),
        token=Token(connection.auth_token),
    )


@pytest.fixture
def me(demo: Any) -> Context:
    return asking(demo)


def fresh(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


Make = Callable[..., str]


@pytest.fixture
def made(images: GlanceImages, me: Context, tmp_path: Path) -> Iterator[Make]:
    """Makes active images of the caller's."""
    known: list[str] = []

    def make(name: str = "disk", **properties: Any) -> str:
        path = tmp_path / "content"
        path.write_bytes(CONTENT)
        facts = {"disk_format": "raw", "container_format": "bare", **properties}
        image = images.create(me, str(uuid.uuid4()), name, **facts)
        known.append(image.id)
        return images.upload(image.id, str(path), quiet).id

    yield make
    for each in known:
        images.discard(each)


def test_an_image_is_found_by_id_url_and_name(
    images: GlanceImages, me: Context, demo: Any, made: Make
) -> None:
    name = fresh('in:odd, "name" \\')
    identifier = made(
        name, min_disk=2, min_ram=512, properties={"os_distro": "debian", "cinder_img_volume_type": "x"}
    )
    image = images.get(identifier, context=me)
    assert (image.status, image.name, image.disk_format, image.container_format) == (
        "active",
        name,
        "raw",
        "bare",
    )
    assert (image.min_disk, image.min_ram, image.size) == (2, 512, len(CONTENT))
    assert image.owner == demo.current_project_id, "it was made in the caller's name"
    assert image.visibility == "private"
    assert image.checksum == hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    assert image.properties == {
        "os_distro": "debian",
        "cinder_img_volume_type": "x",
        "os_hash_algo": "sha512",
        "os_hash_value": hashlib.sha512(CONTENT).hexdigest(),
    }
    for reference in (name, identifier.upper(), f"http://glance:9292/v2/images/{identifier}"):
        assert images.get(reference, context=me) == image
    with pytest.raises(InvalidInput, match="could not be found"):
        images.get(str(uuid.uuid4()), context=me)
    with pytest.raises(InvalidInput, match="could not be found"):
        images.get(fresh("none"), context=me)
    made(name)
    with pytest.raises(Conflict, match="Several images"):
        images.get(name, context=me)


def test_glance_judges_who_meets_an_image(
    images: GlanceImages, me: Context, admin: Any, demo: Any, made: Make
) -> None:
    """Also an image that is shared with one project, which no rule of this service could tell."""
    private, community = made(fresh("mine")), made(fresh("known"), visibility="community")
    shared = made(fresh("shared"), visibility="shared")
    project = admin.identity.create_project(name=fresh("others"), domain_id="default")
    admin.identity.assign_project_role_to_user(project, admin.current_user_id, _role(admin, "member"))
    try:
        with admin.connect_as_project(project.name) as connection:
            other = asking(connection)
            assert images.get(community, context=other).id == community
            for hidden in (private, shared):
                with pytest.raises(InvalidInput, match="could not be found"):
                    images.get(hidden, context=other)
            demo.image.add_member(shared, member_id=project.id)
            assert images.get(shared, context=other).id == shared
    finally:
        admin.identity.delete_project(project)
    assert images.get(private, context=asking(admin, "admin")).id == private
    with pytest.raises(Forbidden, match="image service refuses"):
        images.create(
            me, str(uuid.uuid4()), "no", disk_format="raw", container_format="bare", visibility="public"
        )
    with pytest.raises(InvalidInput, match="disk_format"):
        images.create(me, str(uuid.uuid4()), "no", disk_format="punched-cards", container_format="bare")
    stale = Context(user_id="x", project_id=me.project_id, token=Token("no token"))
    with pytest.raises(Unauthorized):
        images.get(private, context=stale)


def _role(connection: Any, name: str) -> Any:
    return connection.identity.find_role(name)


def test_callers_without_a_token_meet_their_own_public_and_community_images(
    images: GlanceImages, me: Context, made: Make
) -> None:
    """As where Lapilli knows its users from a file, and Glance only its own."""
    private, community = made(fresh("mine")), made(fresh("known"), visibility="community")
    mine = Context(user_id="x", project_id=me.project_id, roles=frozenset({"member"}))
    other = Context(user_id="x", project_id="f" * 32, roles=frozenset({"member"}))
    assert images.get(private, context=mine).id == private
    assert images.get(community, context=other).id == community
    with pytest.raises(InvalidInput, match="could not be found"):
        images.get(private, context=other)
    image = images.create(mine, str(uuid.uuid4()), "x", disk_format="raw", container_format="bare")
    assert image.owner == me.project_id
    images.discard(image.id)


def test_fetch_gives_the_content_and_notices_damage(
    cloud: Cloud, images: GlanceImages, made: Make, tmp_path: Path
) -> None:
    image = images.get(made())
    images = source(cloud, tmp_path / "scratch", glance_num_retries=0)  # it would try again in vain
    told: list[tuple[int, int]] = []
    with images.fetch(image, str(tmp_path), lambda done, total: told.append((done, total))) as (path, whole):
        whole()
        assert Path(path).read_bytes() == CONTENT
        assert os.stat(path).st_blocks * 512 < 2 * MIB, "the hole was filled"
    assert told[-1] == (len(CONTENT), len(CONTENT))
    stored = cloud.glance.directory / "images" / image.id
    for damage, words in (
        (CONTENT[:-1] + b"!", "sha512 checksum"),
        (CONTENT[:-1], "not of|did not arrive"),  # Glance has told the length before
        (CONTENT[:MIB], "not of|did not arrive"),
    ):
        stored.write_bytes(damage)
        with (
            pytest.raises((StorageError, Exception), match=words),
            images.fetch(image, str(tmp_path), quiet),
        ):
            raise AssertionError("it was handed out")
    stored.unlink()
    with pytest.raises(ImageUnacceptable, match="is gone"), images.fetch(image, str(tmp_path), quiet):
        raise AssertionError("it was handed out")
    assert downloads(tmp_path) == [], "something was left"


def downloads(directory: Path) -> list[Path]:
    """What is there of images that were downloaded."""
    return sorted(each for each in directory.iterdir() if "download" in each.name)


def test_two_who_fetch_one_image_do_not_disturb_each_other(
    images: GlanceImages, made: Make, tmp_path: Path
) -> None:
    """Such as a worker that was stopped and goes on, and the one that has taken over from it."""
    image = images.get(made())
    begun, reading, ended = (threading.Event() for _ in range(3))

    def late(done: int, _total: int) -> None:
        """Stands still in the middle of the download, until the other reads."""
        if done < len(CONTENT) and not begun.is_set():
            begun.set()
            assert reading.wait(60)

    def first() -> bytes:
        try:
            with images.fetch(image, str(tmp_path), late) as (path, whole):
                whole()
                return Path(path).read_bytes()
        finally:
            ended.set()

    def second() -> bytes:
        assert begun.wait(60)
        with images.fetch(image, str(tmp_path), quiet) as (path, whole), open(path, "rb") as file:
            found = file.read(1000)
            reading.set()
            assert ended.wait(60)
            whole()
            assert Path(path).exists(), "whoever opens it once more finds it"
            return found + file.read()

    with ThreadPoolExecutor(2) as pool:
        assert [each.result() for each in (pool.submit(first), pool.submit(second))] == [CONTENT, CONTENT]
    assert downloads(tmp_path) == [], "something was left"


_READER = """
    import sys, time
    from lapilli.adapters.images.glance import GlanceImages
    from lapilli.adapters.images.image_api import GlanceOptions, ServiceUserOptions

    address, name, password, identifier, directory, region = sys.stdin.read().split()
    user = ServiceUserOptions(
        auth_url=address, username=name, password=password, region_name=region, interface="public"
    )
    images = GlanceImages(GlanceOptions(), user, "/nowhere")
    with images.fetch(images.get(identifier), directory, lambda done, total: None):
        print("reading", flush=True)
        time.sleep(600)
"""


def test_what_a_killed_reader_leaves_is_removed(
    cloud: Cloud, images: GlanceImages, made: Make, tmp_path: Path
) -> None:
    """By whoever fetches any image next; and nothing that another still reads."""
    read, other = made(), images.get(made())
    user = service_user(cloud)
    words = (user.auth_url, user.username, user.password, read, tmp_path, user.region_name)
    readers = [started(_READER, *words) for _ in range(2)]
    killed, paused = readers
    try:
        assert [line_of(each) for each in readers] == ["reading\n"] * 2
        paused.send_signal(signal.SIGSTOP)
        killed.kill()
        killed.wait()
        with images.fetch(other, str(tmp_path), quiet):
            pass
        kept = [each for each in downloads(tmp_path) if each.suffix == ".download"]
        assert [each.read_bytes() == CONTENT for each in kept] == [True]
    finally:
        for each in readers:
            each.kill()
            each.communicate()
    with images.fetch(other, str(tmp_path), quiet):
        pass
    assert downloads(tmp_path) == []


def started(program: str, *words: object) -> subprocess.Popen[str]:
    """A process that is told these words, where no list of processes shows them."""
    made = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert made.stdin is not None
    made.stdin.write(" ".join(map(str, words)))
    made.stdin.close()
    made.stdin = None
    return made


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that it prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_create_upload_and_discard_may_run_twice(images: GlanceImages, me: Context, tmp_path: Path) -> None:
    identifier = str(uuid.uuid4())
    facts = {"disk_format": "raw", "container_format": "bare", "protected": True}
    queued = images.create(me, identifier, "from volume", **facts)
    assert (queued.id, queued.status, queued.protected) == (identifier, "queued", True)
    assert images.create(me, identifier, "from volume", **facts) == queued
    assert images.exists(identifier)
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    active = images.upload(identifier, str(path), quiet)
    assert (active.status, active.size) == ("active", len(CONTENT))
    assert images.upload(identifier, str(path), quiet) == active
    images.discard(identifier)
    images.discard(identifier)
    assert not images.exists(identifier)
    with pytest.raises(ImageUnacceptable, match="does not exist"):
        images.upload(identifier, str(path), quiet)


_UPLOADER = """
    import sys, time
    from lapilli.adapters.images.glance import GlanceImages
    from lapilli.adapters.images.image_api import GlanceOptions, ServiceUserOptions

    def slowly(done, total):
        print(done, flush=True)
        time.sleep(0.2)

    address, name, password, identifier, path, region = sys.stdin.read().split()
    user = ServiceUserOptions(
        auth_url=address, username=name, password=password, region_name=region, interface="public"
    )
    GlanceImages(GlanceOptions(), user, "/nowhere").upload(identifier, path, slowly)
"""


def test_an_upload_whose_sender_is_killed_is_done_again(
    cloud: Cloud, images: GlanceImages, me: Context, tmp_path: Path
) -> None:
    """Half a content must never become an image."""
    path = tmp_path / "content"
    path.write_bytes(os.urandom(20 * MIB))
    image = images.create(me, str(uuid.uuid4()), "x", disk_format="raw", container_format="bare")
    user = service_user(cloud)
    words = (user.auth_url, user.username, user.password, image.id, path, user.region_name)
    sender = started(_UPLOADER, *words)
    assert line_of(sender)
    sender.kill()
    sender.communicate()
    assert images.get(image.id).status != "active"
    assert images.upload(image.id, str(path), quiet).size == 20 * MIB
    with images.fetch(images.get(image.id), str(tmp_path), quiet) as (copy, whole):
        whole()
        assert Path(copy).read_bytes() == path.read_bytes()
    images.discard(image.id)


def test_glance_is_away(cloud: Cloud, me: Context, tmp_path: Path) -> None:
    """It is said plainly, and it is asked again once it is back."""
    images = source(cloud, tmp_path, glance_num_retries=0)
    with pytest.raises(InvalidInput):
        images.get(fresh("none"), context=me)
    cloud.glance.stop()
    try:
        for context in (me, None):
            with pytest.raises(ImageServiceUnavailable, match="does not answer") as told:
                images.get(fresh("none"), context=context)
            assert str(cloud.glance.port) not in told.value.message
        with pytest.raises(ImageServiceUnavailable):
            images.exists(str(uuid.uuid4()))
    finally:
        cloud.glance.start()
    with pytest.raises(InvalidInput):
        images.get(fresh("none"), context=me)


def test_a_wrong_password_of_the_service_is_no_fault_of_the_image(cloud: Cloud, tmp_path: Path) -> None:
    right = service_user(cloud)
    wrong = ServiceUserOptions(
        auth_url=right.auth_url, username=right.username, password="wrong", interface="public"
    )
    images = GlanceImages(GlanceOptions(glance_num_retries=0), wrong, str(tmp_path))
    with pytest.raises(ImageServiceUnavailable) as told:
        images.exists(str(uuid.uuid4()))
    assert "wrong" not in told.value.message


# --- signed images ---------------------------------------------------------------------------------------

Signer = tuple[str, str, Callable[[bytes], bytes]]


def _signer(key: Any, directory: Path, *, days: int = 1) -> str:
    """A certificate of a key, where the service looks for it; its name."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "signer")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    identifier = str(uuid.uuid4())
    (directory / f"{identifier}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return identifier


def _signed(kind: str, identifier: str, signature: bytes) -> dict[str, str]:
    return {
        "img_signature": base64.b64encode(signature).decode(),
        "img_signature_hash_method": "SHA-256",
        "img_signature_key_type": kind,
        "img_signature_certificate_uuid": identifier,
    }


def test_signed_images(cloud: Cloud, demo: Any, made: Make, tmp_path: Path) -> None:
    """Signed after their upload, at which Glance would look for certificates itself, and find none."""

    def signed(properties: dict[str, str]) -> Image:
        demo.image.update_image(identifier, **properties)
        return images.get(identifier)

    identifier = made()
    images = source(cloud, tmp_path / "scratch", signature_certificates=str(tmp_path))
    secret = rsa.generate_private_key(65537, 2048)
    curve = ec.generate_private_key(ec.SECP521R1())
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.MAX_LENGTH)
    good = secret.sign(CONTENT, pss, hashes.SHA256())
    known, expired = _signer(secret, tmp_path), _signer(secret, tmp_path, days=-1)
    elliptic = _signer(curve, tmp_path)
    sure = curve.sign(CONTENT, ec.ECDSA(hashes.SHA256()))
    for properties in (_signed("RSA-PSS", known, good), _signed("ECC_SECP521R1", elliptic, sure)):
        with images.fetch(signed(properties), str(tmp_path), quiet) as (path, whole):
            whole()
            assert Path(path).read_bytes() == CONTENT
    for properties, words in (
        (_signed("RSA-PSS", known, secret.sign(b"other", pss, hashes.SHA256())), "not that of its content"),
        (_signed("RSA-PSS", expired, good), "not valid today"),
        (_signed("RSA-PSS", str(uuid.uuid4()), good), "is not here"),
        (_signed("RSA-PSS", elliptic, good), "no key of the kind"),
        ({**_signed("RSA-PSS", known, good), "img_signature_hash_method": "MD5"}, "hash method"),
        ({**_signed("RSA-PSS", known, good), "img_signature": "%%%"}, "cannot be read"),
    ):
        with (
            pytest.raises(ImageUnacceptable, match=words) as told,
            images.fetch(signed(properties), str(tmp_path), quiet),
        ):
            raise AssertionError("it was handed out")
        assert told.value.detail == "011"
    careless = source(cloud, tmp_path / "scratch", verify_glance_signatures="disabled")
    with careless.fetch(images.get(identifier), str(tmp_path), quiet) as (path, whole):
        whole()
        assert Path(path).read_bytes() == CONTENT
