"""Opening an SQLite file that the processes of one host share, or refusing it in words."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from quart_openai_sse.errors import ConfigurationError, LogUnavailable

_APPLICATION_ID = 0x6F617373
_USER_VERSION = 1
_LOCK_TIMEOUT = 2.0  # seconds

_NETWORK = re.compile(r"nfs\d?|cifs|smb\w*|9p|afs|ceph|lustre|fuse\.(sshfs|ceph|glusterfs|s3fs|rclone|gcsfuse)")


def create_file(path: Path) -> None:
    """Creates the file, which only its user can read, and its folder, unless they exist.

    Raises `ConfigurationError` if the file can't be used there, and `LogUnavailable` if the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_local(path, _read_mounts())
        if not path.exists():
            # Not for an existing file: closing it would release the locks of this process's other connections.
            with suppress(FileExistsError):
                path.touch(mode=0o600, exist_ok=False)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LogUnavailable(f"{path.name} cannot be created, because the disk is full.") from error
        raise ConfigurationError(f"{path} cannot be created: {error.strerror}.") from error
    if not path.is_file():
        raise ConfigurationError(f"{path} is not a file.")
    for place, mode in ((path, os.R_OK | os.W_OK), (path.parent, os.W_OK | os.X_OK)):
        if not os.access(place, mode):
            raise ConfigurationError(f"{place} must be writable: SQLite writes the file and others beside it.")


def without_folder(message: str, path: Path) -> str:
    """A message that callers of the app may see: they are not told where the file is."""
    return message.replace(f"{path.parent}/", "").replace(str(path.parent), f"The folder of {path.name}")


def connect(path: Path, schema: str) -> sqlite3.Connection:
    """A connection to a file in which the tables of *schema* exist.

    Raises `ConfigurationError` if the file belongs to another program, or to a version that stores streams in another
    way, and `sqlite3.Error`.
    """
    until = time.monotonic() + _LOCK_TIMEOUT
    db = sqlite3.connect(path, timeout=_LOCK_TIMEOUT, isolation_level=None)
    try:
        while True:
            try:
                _prepare(db, path, schema)
                return db
            except sqlite3.OperationalError as error:
                # SQLite does not wait for a lock when it changes the journal mode, which each first worker does.
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
            time.sleep(0.02)
    except BaseException:
        db.close()
        raise


def identity(path: Path) -> tuple[int, int] | None:
    """The identity of the file at *path*, which a file that replaces it does not share; `None` if there is no file.

    A file that is removed can still be read and written by those that have it open, but nobody else sees that.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_local(path: Path, mounts: str) -> None:
    """Raises `ConfigurationError` if *path* is on a network file system, by a text like Linux's `mountinfo`."""
    kind = file_system(mounts, os.path.realpath(path))
    if _NETWORK.fullmatch(kind):
        raise ConfigurationError(
            f"{path} is on a network file system ({kind}), where SQLite's locks do not work reliably. "
            "Use a local disk, or Redis."
        )


def file_system(mounts: str, path: str) -> str:
    """The type of the file system with *path*, which is absolute and has no links; "" if *mounts* does not have it."""
    longest, found = "", ""
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        # The fifth field is where it is mounted, with spaces and the like in octal.
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), mount.split(" ")[4])
        if f"{path}/".startswith(f"{point.rstrip('/')}/") and len(point) >= len(longest):
            longest, found = point, source.split(" ")[0]
    return found


def _read_mounts() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:  # not Linux
        return ""


def _prepare(db: sqlite3.Connection, path: Path, schema: str) -> None:
    db.execute("BEGIN")  # otherwise another worker could create the tables between two of these reads
    try:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        # The limits may be counted in the same file, and have come first.
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master WHERE name NOT LIKE '%limits_%'").fetchone()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise ConfigurationError(f"{path} is not an SQLite database.") from error
        raise
    finally:
        db.execute("ROLLBACK")
    if application != _APPLICATION_ID and (application or version or tables):
        raise ConfigurationError(f"{path} is the SQLite database of another program.")
    if tables and version != _USER_VERSION:
        raise ConfigurationError(
            f"{path} was written by a version of this package that stores streams in another way ({version} instead of "
            f"{_USER_VERSION}). Stop its workers, and remove the file or name another one."
        )
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # which is possible before the first table only
    if db.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
        raise ConfigurationError(f"{path} is on a file system where SQLite cannot keep a write-ahead log.")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA secure_delete = ON")  # what was erased is overwritten
    db.execute(f"PRAGMA journal_size_limit = {16 << 20}")
    db.execute("BEGIN IMMEDIATE")
    try:
        for statement in schema.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {_USER_VERSION}")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
