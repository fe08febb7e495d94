"""A folder of files, on this machine or in an object store, behind the few operations that reading a store needs."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.fs

from asmil.errors import AsmilError, EnvironmentProblem, IntegrityError
from asmil.storage.addresses import local_path, open_fs
from asmil.storage.retries import RetryPolicy, failure_of, reason_of

__all__ = ["LocalLocation", "Location", "RemoteLocation", "open_location"]

RETRY = RetryPolicy()
GOOGLE_RETRY = RetryPolicy(attempts=2)
"""Google's client repeats a failed request six times by itself, over about half a minute."""
MAX_OPEN_OBJECTS = 1024
sleep = time.sleep

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_FINAL = (AsmilError, TypeError, AttributeError, NameError, AssertionError, ImportError, NotImplementedError)
"""Never repeated: our own, and bugs."""


class Location(Protocol):
    """A folder of files that are read by name.

    Attributes:
        uri: The folder, as named in messages.
        local_root: The folder as a path; None if it is on another machine.
    """

    uri: str
    local_root: Path | None

    def read_file(self, name: str, *, max_bytes: int) -> bytes:
        """A small file.

        Raises:
            FileNotFoundError: There is none.
            IntegrityError: It is larger than it can be.
            EnvironmentProblem: It cannot be read now, or not by this user.
        """
        ...

    def read_into(self, name: str, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from a position of a file.

        Returns:
            Bytes read, fewer than the buffer holds where the file ends before.

        Raises:
            FileNotFoundError: There is no such file.
            EnvironmentProblem: It cannot be read now, or not by this user.
        """
        ...

    def sizes(self, folder: str) -> Mapping[str, int] | None:
        """Size of every file directly in a folder, keyed by `folder/name`; None if the place cannot list files."""
        ...


def open_location(uri: str) -> Location:
    """The folder an address names; raises what `open_fs` raises."""
    path = local_path(uri)
    return RemoteLocation(uri) if path is None else LocalLocation(path)


class LocalLocation:
    """A folder on a local disk or mount."""

    def __init__(self, root: Path) -> None:
        self.uri = str(root)
        self.local_root: Path | None = root
        self._root = root

    def read_file(self, name: str, *, max_bytes: int) -> bytes:
        """As `Location.read_file`."""
        path = self._root / name
        try:
            with path.open("rb") as file:
                _check_size(str(path), os.fstat(file.fileno()).st_size, max_bytes)
                return file.read(max_bytes)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{path}: no such file") from None
        except OSError as error:
            raise EnvironmentProblem(f"{path}: cannot be read ({error}); check path and permissions") from error

    def read_into(self, name: str, offset: int, buffer: memoryview) -> int:
        """As `Location.read_into`."""
        path = self._root / name
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                done = 0
                while done < len(buffer) and (num_read := file.readinto(buffer[done:])):
                    done += num_read
                return done
        except FileNotFoundError:
            raise
        except OSError as error:
            raise EnvironmentProblem(f"{path}: cannot be read ({error}); check path and permissions") from error

    def sizes(self, folder: str) -> Mapping[str, int] | None:
        """As `Location.sizes`."""
        try:
            with os.scandir(self._root / folder) as entries:
                return {f"{folder}/{entry.name}": entry.stat().st_size for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except PermissionError:
            return None


class RemoteLocation:
    """A prefix of an object store, or a folder behind any fsspec address.

    Every request is repeated as `RetryPolicy` says when its failure may pass: 5xx, 429, timeouts, broken connections,
    bodies that are too short. 403 and 404 are final. Safe to use from several threads; pickles as its address, and
    opens itself again in every process, forked ones too.

    Args:
        uri: The address.
        retry: Attempts and pauses.
    """

    def __init__(self, uri: str, retry: RetryPolicy | None = None) -> None:
        self.uri = uri.rstrip("/")
        self.local_root: Path | None = None
        self._retry = retry or (GOOGLE_RETRY if uri.startswith(("gs:", "gcs:")) else RETRY)
        self._process: int | None = None
        self._connect()

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "retry": self._retry}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["uri"], state["retry"])  # type: ignore[misc]

    def read_file(self, name: str, *, max_bytes: int) -> bytes:
        """As `Location.read_file`; one request, for S3 two."""
        where = f"{self.uri}/{name}"
        try:
            content = self._repeat(name, lambda: self._client().read_all(name, max_bytes))
        except _EndsEarlyError as error:
            raise IntegrityError(f"{where}: {error}; copy the store there again") from None
        self._client().forget(name)
        _check_size(where, len(content), max_bytes)
        return content

    def read_into(self, name: str, offset: int, buffer: memoryview) -> int:
        """As `Location.read_into`; one ranged request, after one for the size of a file not read before."""
        longest = 0

        def request() -> int:
            nonlocal longest
            content = self._client().read(name, offset, len(buffer))
            if len(content) > len(buffer):
                return len(content)
            buffer[: len(content)] = content
            longest = max(longest, len(content))
            if len(content) < len(buffer):
                raise _EndsEarlyError(f"got {len(content)} of {len(buffer)} bytes at {offset} (past end of file)")
            return len(content)

        try:
            num_read = self._repeat(name, request)
        except _EndsEarlyError:
            return longest
        if num_read > len(buffer):
            raise EnvironmentProblem(
                f"{self.uri}/{name}: asked for {len(buffer)} bytes at {offset}, got {num_read}: the server does not "
                "serve ranges; use another server, or copy the store to a local disk"
            )
        return num_read

    def sizes(self, folder: str) -> Mapping[str, int] | None:
        """As `Location.sizes`; one request per thousand files. None where listing is not allowed or not known."""
        try:
            return self._repeat(folder, lambda: self._client().sizes(folder))
        except FileNotFoundError:
            return {}
        except _DeniedError:
            return None

    def _client(self) -> _Client:
        if self._process != os.getpid():
            self._connect()
        return self._connected

    def _connect(self) -> None:
        """Open the file system; no lock, which a fork could leave locked: connecting twice is harmless."""
        try:
            filesystem, path = open_fs(self.uri)
        except (OSError, pa.ArrowException) as error:
            raise EnvironmentProblem(
                f"{self.uri}: cannot be opened ({reason_of(error)}); check address, network and credentials"
            ) from None
        is_fsspec = isinstance(filesystem, pyarrow.fs.PyFileSystem)
        self._connected: _Client = (
            _FsspecClient(filesystem.handler.fs, path) if is_fsspec else _ArrowClient(filesystem, path)
        )
        self._process = os.getpid()

    def _repeat(self, name: str, request: Callable[[], _T]) -> _T:
        where = f"{self.uri}/{name}"
        pauses = [*self._retry.pauses(), None]
        for attempt, pause in enumerate(pauses, start=1):
            try:
                return request()
            except _FINAL:
                raise
            except Exception as error:  # every client has its own errors; `failure_of` sorts them
                self._client().forget(name)
                self._give_up_if_final(where, error, is_last=pause is None)
                _log.warning("%s: attempt %d of %d: %s", where, attempt, len(pauses), reason_of(error))
                assert pause is not None
                sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _give_up_if_final(self, where: str, error: Exception, *, is_last: bool) -> None:
        failure, reason = failure_of(error), reason_of(error)
        if failure == "missing":
            raise FileNotFoundError(f"{where}: no such object") from None
        if failure == "denied":
            raise _DeniedError(
                f"{where}: access denied ({reason}); check the address, which may name nothing, and the credentials "
                "in the environment (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role)"
            ) from None
        if failure == "refused":
            raise EnvironmentProblem(
                f"{where}: the server refuses the request ({reason}); check address, region and endpoint"
            ) from None
        if is_last and failure == "ends early":
            raise _EndsEarlyError(reason) from None
        if is_last:
            raise EnvironmentProblem(
                f"{where}: cannot be read, {self._retry.attempts} attempts failed, the last with: {reason}; "
                "check the network and the server, then start again"
            ) from None


class _DeniedError(EnvironmentProblem):
    """The server knows us not, or does not let us."""


class _EndsEarlyError(OSError):
    """The object or the answer is shorter than what was asked for."""


class _Client(Protocol):
    def read_all(self, name: str, max_bytes: int) -> bytes: ...

    def read(self, name: str, offset: int, nbytes: int) -> bytes: ...

    def sizes(self, folder: str) -> dict[str, int] | None: ...

    def forget(self, name: str) -> None: ...


class _ArrowClient:
    """S3. Opening an object costs one request for its size; objects stay open, so it is paid once."""

    def __init__(self, filesystem: pyarrow.fs.FileSystem, root: str) -> None:
        self._filesystem = filesystem
        self._root = root
        self._lock = threading.Lock()
        self._objects: OrderedDict[str, pa.NativeFile] = OrderedDict()

    def read_all(self, name: str, max_bytes: int) -> bytes:
        size = int(self._open(name).size())
        _check_size(f"{self._root}/{name}", size, max_bytes)
        content = self.read(name, 0, size)
        if len(content) < size:
            raise _EndsEarlyError(f"got {len(content)} of {size} bytes (past end of file)")
        return content

    def read(self, name: str, offset: int, nbytes: int) -> bytes:
        content: bytes = self._open(name).read_at(nbytes, offset)
        return content

    def sizes(self, folder: str) -> dict[str, int] | None:
        found = self._filesystem.get_file_info(pyarrow.fs.FileSelector(f"{self._root}/{folder}"))
        return {f"{folder}/{info.base_name}": info.size for info in found if info.is_file}

    def forget(self, name: str) -> None:
        with self._lock:
            self._objects.pop(name, None)

    def _open(self, name: str) -> pa.NativeFile:
        with self._lock:
            opened = self._objects.get(name)
        if opened is None:
            opened = self._filesystem.open_input_file(f"{self._root}/{name}")
            with self._lock:
                opened = self._objects.setdefault(name, opened)
                if len(self._objects) > MAX_OPEN_OBJECTS:
                    self._objects.popitem(last=False)
        return opened


class _FsspecClient:
    """Everything else. Ranges are asked for directly: the file objects of fsspec read ahead."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")

    def read_all(self, name: str, max_bytes: int) -> bytes:
        return self.read(name, 0, max_bytes + 1)  # over HTTP, asking for the size hides why there is none

    def read(self, name: str, offset: int, nbytes: int) -> bytes:
        content: bytes = self._filesystem.cat_file(f"{self._root}/{name}", start=offset, end=offset + nbytes)
        return content

    def sizes(self, folder: str) -> dict[str, int] | None:
        protocol = self._filesystem.protocol
        if "http" in ((protocol,) if isinstance(protocol, str) else protocol):
            return None  # what an index page lists is a guess
        self._filesystem.invalidate_cache()  # shared by all users of this file system in the process
        found = self._filesystem.ls(f"{self._root}/{folder}", detail=True)
        return {
            f"{folder}/{entry['name'].rpartition('/')[2]}": entry["size"] for entry in found if entry["type"] == "file"
        }

    def forget(self, name: str) -> None:
        """Nothing is kept open."""


def _check_size(where: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise IntegrityError(
            f"{where}: {size} bytes, but this file can have {max_bytes} at most; restore it or convert again"
        )
