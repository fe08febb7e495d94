"""How often and after which pauses a failed request is repeated, and which failures are worth it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["Failure", "RetryPolicy", "failure_of", "reason_of"]

Failure = Literal["missing", "denied", "refused", "ends early", "passing"]

_STATUS = re.compile(r"HTTP status (\d{3})")
_DENIED = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "MISSING_AUTHENTICATION_TOKEN",
    "UNRECOGNIZED_CLIENT",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "InvalidAccessKeyId",
    "ExpiredToken",
    "Forbidden: ",
    "default credentials were not found",
)
_MISSING = ("NO_SUCH_KEY", "NO_SUCH_BUCKET", "RESOURCE_NOT_FOUND", "NOT_FOUND")
_PASSING_STATUS = (408, 425, 429)


@dataclass(frozen=True)
class RetryPolicy:
    """Bounded attempts with exponentially growing, randomly shortened pauses.

    Attributes:
        attempts: Requests in all.
        first_s: Longest pause before the second attempt; it doubles with every further one.
        cap_s: No pause is longer.
        seed: Of the random part; None takes another one in every process.
    """

    attempts: int = 5
    first_s: float = 0.5
    cap_s: float = 30.0
    seed: int | None = None

    def pauses(self) -> Iterator[float]:
        """Seconds to wait before the second, third, … attempt: between half of the pause and all of it.

        Example:
            >>> [round(s, 2) for s in RetryPolicy(attempts=4, first_s=1, cap_s=3, seed=0).pauses()]
            [0.92, 1.76, 2.13]
        """
        rng = random.Random(self.seed)
        for repeat in range(self.attempts - 1):
            yield min(self.cap_s, self.first_s * 2**repeat) * rng.uniform(0.5, 1)


def failure_of(error: Exception) -> Failure:
    """What a failed request means; whatever is not known to be final may pass.

    pyarrow gives errors of S3 as text, clients over HTTP a status, and Google's client some of both.
    """
    if isinstance(error, FileNotFoundError):
        return "missing"
    text = str(error)
    match = _STATUS.search(text)
    status = int(match.group(1)) if match else getattr(error, "status", None)
    if isinstance(error, PermissionError) or status in (401, 403) or any(word in text for word in _DENIED):
        return "denied"
    if status == 404 or any(word in text for word in _MISSING):
        return "missing"
    if status == 416 or "past end of file" in text:
        return "ends early"
    if isinstance(status, int) and 300 <= status < 500 and status not in _PASSING_STATUS:
        return "refused"
    return "passing"


def reason_of(error: Exception) -> str:
    """An error in one short line."""
    text = " ".join(str(error).split())[:300]
    return text or type(error).__name__
