"""Which file system an address belongs to, with explicit timeouts and with credentials from the environment only."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow.fs

from asmil.errors import ConfigError, DataError, EnvironmentProblem

__all__ = ["local_path", "open_fs"]

CONNECT_TIMEOUT_S = 10.0
STALL_TIMEOUT_S = 30.0
"""A request that receives nothing for this long has failed."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_BUCKET_SCHEMES = ("s3", "gs", "gcs")


def local_path(uri: str) -> Path | None:
    """The absolute path a local address names, or None for an address of another machine.

    Args:
        uri: A path, or an address with a scheme.

    Raises:
        ConfigError: A `file://` address names another machine.
    """
    if "://" not in uri:
        return Path(uri).expanduser().absolute()
    if not uri.lower().startswith("file://"):
        return None
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(f"{uri}: a file address has three slashes and an absolute path, as in file:///data/store")
    return Path(unquote(parts.path))


def open_fs(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system an address belongs to, and the path in it.

    `s3://` is opened by pyarrow, without its own retries; every other scheme by fsspec, wrapped for pyarrow (pyarrow's
    own client for `gs://` would ask for all that follows a range, too). S3 takes credentials, `AWS_ENDPOINT_URL_S3` or
    `AWS_ENDPOINT_URL`, `AWS_REGION` or `AWS_DEFAULT_REGION` and `AWS_CA_BUNDLE` from the environment.

    Args:
        uri: A local path, or an address such as `s3://bucket/prefix`.

    Returns:
        File system and path; a local path is made absolute.

    Raises:
        ConfigError: The address holds credentials or options.
        DataError: The scheme is unknown.
        EnvironmentProblem: The scheme needs a package that is not installed.
    """
    path = local_path(uri)
    if path is not None:
        return pyarrow.fs.LocalFileSystem(), str(path)
    scheme, _, rest = uri.partition("://")
    _refuse_credentials(scheme, uri)
    rest = rest.rstrip("/")
    if scheme == "s3":
        return _s3(rest.partition("/")[0]), rest
    return _through_fsspec(scheme, uri.rstrip("/"))


def _refuse_credentials(scheme: str, uri: str) -> None:
    """Nothing of an address that may hold a secret is repeated in the message."""
    if not _SCHEME.fullmatch(scheme):
        shown = "the address" if "@" in uri else uri
        raise ConfigError(f"{shown}: not an address that can be opened; give a path, or one such as s3://bucket/prefix")
    shown = scheme
    try:
        parts = urlsplit(uri)
        has_password = parts.password is not None
    except ValueError:
        raise ConfigError(f"{shown}://…: not an address; expected such as s3://bucket/prefix") from None
    has_user = "@" in parts.netloc and scheme in (*_BUCKET_SCHEMES, "http", "https")
    if has_password or has_user:
        raise ConfigError(
            f"{shown}://…: the address holds credentials; leave them out and set them in the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role for S3)"
        )
    if scheme in _BUCKET_SCHEMES and not _BUCKET.fullmatch(parts.netloc):
        raise ConfigError(f"{shown}://…: the address names no bucket; expected such as s3://bucket/prefix")
    if parts.query:
        raise ConfigError(
            f"{shown}://{parts.netloc}…: options in an address ({len(parts.query)} characters after '?') are not read; "
            "set AWS_ENDPOINT_URL and AWS_REGION in the environment, and use an address without a signature"
        )


def _s3(bucket: str) -> pyarrow.fs.S3FileSystem:
    options: dict[str, Any] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        scheme, separator, host = endpoint.partition("://")
        if not separator or scheme not in ("http", "https") or "@" in host:
            raise EnvironmentProblem("AWS_ENDPOINT_URL: expected http://host:port or https://host:port")
        options |= {"scheme": scheme, "endpoint_override": host.rstrip("/")}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region:
        options["region"] = region
    elif not endpoint:
        options["region"] = _region_of(bucket)
    if os.environ.get("AWS_CA_BUNDLE"):
        options["tls_ca_file_path"] = os.environ["AWS_CA_BUNDLE"]
    return pyarrow.fs.S3FileSystem(
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=STALL_TIMEOUT_S,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=1),
        **options,
    )


def _region_of(bucket: str) -> str | None:
    """Where a bucket lies, by one request without credentials; None leaves it to the configuration files of AWS."""
    try:
        region: str = pyarrow.fs.resolve_s3_region(bucket)
    except (OSError, pyarrow.ArrowException):
        return None
    return region


def _through_fsspec(scheme: str, uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    import fsspec.core  # takes half a second with the packages of some schemes; local stores never need it

    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=STALL_TIMEOUT_S)
        options["client_kwargs"] = {"timeout": timeout}
    try:
        filesystem, path = fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        raise EnvironmentProblem(f"{uri}: {error}; install that package, or copy the store to a local disk") from None
    except ValueError as error:
        raise DataError(
            f"{uri}: not an address that can be opened ({error}); give a path, or one such as s3://bucket/prefix"
        ) from None
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path
