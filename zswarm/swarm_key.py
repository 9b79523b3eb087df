"""The secret of a swarm, and the small text file that it lives in.

There is one key for a swarm, and whoever holds it is a member: he may listen and dial as any other member, read what
he is sent, and act as trainer, broker or worker. Members are not told apart by it and none can be shut out alone; to
shut one out, make a new key, copy it to the others and start everybody again. Every pair of keys that the transport
needs is derived from the secret, so that one file is all that a machine needs.

    # comment
    zswarm-key-1 <64 hexadecimal digits>
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from zswarm.errors import UserError

SECRET_BYTES = 32
OWNER_ONLY = 0o600
CREDENTIAL = 0o440
"""Of a file that systemd has made for one service's user: it belongs to that user, or to root (where the folder's file
system has access control lists) with an entry for the user, which shows in the group's bit and lets no group in."""
MAX_FILE_BYTES = 4096
_COMMENT = "# The key of a zswarm swarm: whoever has it is a member. For its owner's eyes only."
_LINE = re.compile(r"zswarm-key-1 (?P<secret>[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class SwarmKey:
    """The secret of a swarm; its text form shows nothing of it."""

    secret: bytes = field(repr=False)

    def derive(self, purpose: str) -> bytes:
        """Return 32 bytes of which no other purpose's can be told, nor the secret; `purpose` has at most 16 bytes."""
        return blake2b(key=self.secret, person=purpose.encode(), digest_size=SECRET_BYTES).digest()


def make_key_file(path: Path) -> None:
    """Write a new key that only its owner can read; folders that are missing are made for the owner alone.

    Raises:
        UserError: there is a file already, which is left as it is, or none can be made.

    """
    content = f"{_COMMENT}\nzswarm-key-1 {secrets.token_hex(SECRET_BYTES)}\n".encode()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, OWNER_ONLY)
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise UserError(f"{path}: is there already, and a key is never overwritten: name another path") from None
        raise _cannot_make(path, error) from None
    try:
        with os.fdopen(file, "wb") as writer:
            os.fchmod(writer.fileno(), OWNER_ONLY)
            writer.write(content)
            writer.flush()
            os.fsync(writer.fileno())
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise _cannot_make(path, error) from None


def replace_key_file(path: Path) -> Path:
    """Put a new key in place of the one in a file, which is kept beside it; returns where.

    Raises:
        UserError: there is no key to replace, or the new one cannot be written; then the old one stays.

    """
    read_key_file(path)
    fresh, old = path.with_name(f"{path.name}.new"), path.with_name(f"{path.name}.old")
    make_key_file(fresh)
    try:
        # A copy by hard link: at no moment is there no key.
        old.unlink(missing_ok=True)
        old.hardlink_to(path)
        fresh.replace(path)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink()
        raise _cannot_make(path, error) from None
    return old


def read_key_file(path: Path, *, credentials: Path | None = None) -> SwarmKey:
    """Return the key in a file; `credentials` is the folder where systemd puts what is for this process.

    Raises:
        UserError: there is none, somebody else may read or change it, or it is no key.

    """
    try:
        # A pipe would be waited for.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        remedy = "; make one with `zswarm key init`, or copy the swarm's" if error.errno == errno.ENOENT else ""
        raise UserError(f"{path}: cannot read the swarm key: {error.strerror}{remedy}") from None
    try:
        _check_owner_only(path, os.fstat(file), is_credential=path.parent == credentials)
        content = os.read(file, MAX_FILE_BYTES)
    finally:
        os.close(file)
    lines = content.decode("ascii", errors="replace").splitlines()
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    match = _LINE.fullmatch(found[0]) if len(found) == 1 else None
    if match is None:
        raise UserError(f"{path}: is no swarm key: `zswarm key init` makes one")
    return SwarmKey(bytes.fromhex(match["secret"]))


def _check_owner_only(path: Path, status: os.stat_result, *, is_credential: bool) -> None:
    """Raise UserError unless this is a file that its owner, who runs this process, has for himself.

    Or one that root has passed on to this process alone.
    """
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: is no file, so no swarm key")
    mode = stat.S_IMODE(status.st_mode)
    if is_credential and status.st_uid == status.st_gid == 0 and not mode & ~CREDENTIAL:
        return
    if status.st_uid != os.geteuid():
        raise UserError(f"{path}: the swarm key belongs to another user: make a copy of your own, of mode 0600")
    if mode & ~OWNER_ONLY:
        raise UserError(
            f"{path}: the swarm key has mode {mode:04o}: others may have read it; chmod 600 it, or make a new one"
        )


def _cannot_make(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot make the key file: {error.strerror}")
