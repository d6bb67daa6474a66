"""Every error the service knows: class, stable code, HTTP status, and a message that is safe to show.

The API edge turns them into answers in one place (`api/app.py`); nothing else knows about HTTP faults.
A message never holds a secret: arguments given to an error are shown to the caller.
"""

from __future__ import annotations

from collections.abc import Sequence


class LapilliError(Exception):
    """Base of all errors; `status` is the HTTP status, `code` a stable name for machines."""

    status = 500
    code = "internal"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidInput(LapilliError):
    """The request is malformed or asks for something that cannot be (400)."""

    status = 400
    code = "invalid-input"


class InvalidState(LapilliError):
    """The resource is not in a state that allows the action (400)."""

    status = 400
    code = "invalid-state"


class Unauthorized(LapilliError):
    """No credentials, or wrong ones (401)."""

    status = 401
    code = "unauthorized"

    def __init__(self, message: str = "The request you have made requires authentication.") -> None:
        super().__init__(message)


class Forbidden(LapilliError):
    """Policy refuses the caller (403)."""

    status = 403
    code = "forbidden"

    def __init__(self, rule: str) -> None:
        super().__init__(f"Policy doesn't allow {rule} to be performed.")


class PolicyRefused(Forbidden):
    """The policy of another service refuses the caller (403)."""

    def __init__(self, message: str) -> None:
        LapilliError.__init__(self, message)


class NotFound(LapilliError):
    """No such resource, or not one that this caller may see (404)."""

    status = 404
    code = "not-found"

    @classmethod
    def of(cls, resource: str, identifier: str) -> NotFound:
        """The usual wording for a resource looked up by id."""
        return cls(f"{resource.capitalize()} {identifier} could not be found.")


class VersionOutOfRange(LapilliError):
    """The microversion asked for is outside the supported range (406)."""

    status = 406
    code = "version-out-of-range"


class Conflict(LapilliError):
    """The request collides with the present state of a resource (409)."""

    status = 409
    code = "conflict"


class PreconditionFailed(LapilliError):
    """`If-Match` names another state (412, empty body)."""

    status = 412
    code = "precondition-failed"


class BodyTooLarge(LapilliError):
    """The request body is larger than `max_request_body_size` (413)."""

    status = 413
    code = "body-too-large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"Request is too large: at most {limit} bytes are accepted.")


class OverQuota(LapilliError):
    """A limit would be exceeded (413). The text begins with the upstream exception's class name."""

    status = 413
    code = "over-quota"

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


class UnsupportedMediaType(LapilliError):
    """The body's content type is not JSON (415)."""

    status = 415
    code = "unsupported-media-type"

    def __init__(self, content_type: str) -> None:
        super().__init__(f"Unsupported Content-Type {content_type!r}; use application/json.")


class TooManyRequests(LapilliError):
    """Too many wrong passwords (429)."""

    status = 429
    code = "too-many-requests"

    def __init__(self, seconds: int) -> None:
        super().__init__(f"Too many failed log-ins: try again in {seconds} s.")
        self.seconds = seconds


class ServiceUnavailable(LapilliError):
    """No process of the needed role is there to serve the request (503)."""

    status = 503
    code = "service-unavailable"


class ImageServiceUnavailable(ServiceUnavailable):
    """The image service does not answer, or refuses this service (503)."""

    code = "image-service-unavailable"


class IdentityUnavailable(ServiceUnavailable):
    """Keystone does not answer (503), so nobody can be told who asks."""

    code = "identity-unavailable"


class DatabaseUnavailable(ServiceUnavailable):
    """The database does not answer (503): what was accepted before is not lost."""

    code = "database-unavailable"


class DatabaseContended(DatabaseUnavailable):
    """Others held or changed the same records (503): the transaction was rolled back, and may be repeated."""

    code = "database-contended"


class ConfigError(LapilliError):
    """A configuration value is wrong; the text names section, option and value. Stops the start."""

    code = "configuration"


class StorageError(LapilliError):
    """A back end, target or image step failed; the operation is reverted.

    `detail` is the user message's detail id (behaviour.md section 12), `retry` tells whether another
    pool may be tried.
    """

    status = 500
    code = "storage"
    detail = "001"
    retry = True

    def __init__(self, message: str, *, detail: str | None = None, retry: bool | None = None) -> None:
        super().__init__(message)
        if detail is not None:
            self.detail = detail
        if retry is not None:
            self.retry = retry


class KeyStoreError(StorageError):
    """The key store does not answer, refuses, or has not got the key."""

    code = "key-store"
    retry = False


class Busy(StorageError):
    """The object is in use at the back end (an open handle, a dependent clone): try again later."""

    code = "busy"
    retry = False


class Unsupported(StorageError):
    """The back end cannot do this at all; nothing has been touched."""

    code = "unsupported"
    retry = False


class ImageUnacceptable(StorageError):
    """The image is missing, corrupt, unsafe, of another format than declared, or too large."""

    status = 400
    code = "image-unacceptable"
    detail = "029"
    retry = False


class NoValidBackend(StorageError):
    """No pool passed the filters. `reasons` holds one plain sentence per pool; the message some of them."""

    code = "no-valid-backend"
    detail = "003"
    retry = False
    most = 20  # pools in the message, which is kept with the volume

    def __init__(self, reasons: Sequence[str]) -> None:
        told = "; ".join(reasons[: self.most]) or "no volume service has reported a pool yet"
        if len(reasons) > self.most:
            told += f"; and {len(reasons) - self.most} more pools: see the scheduler's log"
        super().__init__(f"No valid backend was found: {told}")
        self.reasons = list(reasons)


class DeadlinePassed(StorageError):
    """A driver, a target or an image source has not answered for longer than the operation's deadline."""

    code = "deadline"


class Abandoned(StorageError):
    """An administrator has given the operation up."""

    code = "abandoned"
    retry = False


class LeaseLost(LapilliError):
    """Another worker has taken this operation over: the holder must stop without touching anything."""

    code = "lease-lost"
