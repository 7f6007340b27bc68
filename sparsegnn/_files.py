"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
UNNAMED = getattr(os, "O_TMPFILE", 0)


def check(name: str, path: str | os.PathLike) -> None:
    """TypeError or ValueError now, naming the argument, where `replace` could not write to this path later."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {path!r}")
    if wrong := _obstacle(path) or _no_room(path):
        raise ValueError(f"{name} must be a file in a writable folder, got {os.fspath(path)!r}: {wrong}")


def replace(path: str | os.PathLike, content: bytes | memoryview) -> None:
    """Make `content` the file at `path`, in one move and on the disk: whatever happens, the old file or the new.

    OSError where that cannot be. If only the move was not possible, the content stays under the name that it tells.
    """
    temporary = _temporary_name(path)
    try:
        _write(temporary, content, _mode(path))
        if wrong := _obstacle(path):
            raise FileExistsError(0, wrong)
        os.replace(temporary, path)
    except OSError as e:
        if not os.path.lexists(temporary):
            raise
        raise OSError(e.errno, f"{e.strerror}, so the content is in {temporary}", os.fspath(path)) from e
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    with suppress(OSError):  # not every file system can
        _sync_folder(_folder(path))


def _obstacle(path: str | os.PathLike) -> str:
    """Why no regular file can take this place, "" if one can."""
    text = os.fspath(path)
    if not text or "\0" in text:
        return "not a name of a file"
    if text.endswith(os.sep):
        return "it is a folder"
    try:
        found = os.lstat(text)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as e:
        return getattr(e, "strerror", None) or str(e)
    if not stat.S_ISREG(found.st_mode):
        return f"it is {KINDS.get(stat.S_IFMT(found.st_mode), 'not a regular file')}"
    return "" if os.access(text, os.W_OK) else "the file there cannot be written"


def _no_room(path: str | os.PathLike) -> str:
    """Why no temporary file can be made beside this path, "" if one can. It is tried, with a byte."""
    temporary = _temporary_name(path)
    try:
        _write(temporary, b"?", 0o600)
        os.unlink(temporary)
    except OSError as e:
        return f"{e.strerror}: {_folder(path)}"
    return ""


def _folder(path: str | os.PathLike) -> str:
    return os.path.dirname(os.fspath(path)) or os.curdir


def _temporary_name(path: str | os.PathLike) -> str:
    """A new name in the same folder, which is short even if the path's own is as long as can be."""
    return os.path.join(_folder(path), f"sparsegnn-{secrets.token_hex(6)}.tmp")


def _mode(path: str | os.PathLike) -> int | None:
    """The permissions of the file that is to be replaced."""
    with suppress(OSError):
        return stat.S_IMODE(os.lstat(path).st_mode)
    return None


def _write(path: str, content: bytes | memoryview, mode: int | None) -> None:
    """A new file that is on the disk. Where the system allows, it has no name before, and a kill leaves none behind."""
    try:
        handle = os.open(_folder(path), UNNAMED | os.O_WRONLY, 0o666) if UNNAMED else -1
    except OSError:  # not on this file system, or not at all
        handle = -1
    if handle >= 0:
        with open(handle, "wb") as f:
            _fill(f, content, mode)
            with suppress(OSError):  # no /proc
                # a handle of the folder, unused: only with one is the link in /proc followed
                os.link(f"/proc/self/fd/{handle}", path, src_dir_fd=handle)
                return
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        with open(handle, "wb") as f:
            _fill(f, content, mode)
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise


def _fill(file, content: bytes | memoryview, mode: int | None) -> None:
    if mode is not None:
        os.fchmod(file.fileno(), mode)
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
