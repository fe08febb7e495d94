"""Which failures are worth another attempt, and after which pauses."""

from __future__ import annotations

import pytest

from asmil.storage.retries import Failure, RetryPolicy, failure_of, reason_of


class StatusError(Exception):
    """As clients over HTTP raise them."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status}, message='no'")
        self.status = status


AWS = "When reading information for key 'k' in bucket 'b': AWS Error {} during HeadObject operation: No response body."


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (FileNotFoundError("x"), "missing"),
        (StatusError(404), "missing"),
        (OSError(AWS.format("NO_SUCH_BUCKET")), "missing"),
        (OSError(AWS.format("UNKNOWN (HTTP status 404)")), "missing"),
        (PermissionError(13, "x"), "denied"),
        (StatusError(401), "denied"),
        (StatusError(403), "denied"),
        (OSError(AWS.format("ACCESS_DENIED")), "denied"),
        (OSError(AWS.format("UNKNOWN (HTTP status 403)")), "denied"),
        (OSError("Forbidden: https://storage.googleapis.com/storage/v1/b/b/o"), "denied"),
        (RuntimeError("Your default credentials were not found. To set up"), "denied"),
        (StatusError(416), "ends early"),
        (OSError("got 1 of 2 bytes at 0 (past end of file)"), "ends early"),
        (StatusError(400), "refused"),
        (StatusError(301), "refused"),
        (OSError(AWS.format("UNKNOWN (HTTP status 301)")), "refused"),
        (StatusError(408), "passing"),
        (StatusError(429), "passing"),
        (StatusError(500), "passing"),
        (StatusError(503), "passing"),
        (OSError(AWS.format("SLOW_DOWN")), "passing"),
        (OSError(AWS.format("UNKNOWN (HTTP status 503)")), "passing"),
        (OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28"), "passing"),
        (TimeoutError(), "passing"),
        (ConnectionResetError(104, "x"), "passing"),
    ],
)
def test_failures_are_told_apart(error: Exception, failure: Failure) -> None:
    assert failure_of(error) == failure


def test_pauses_double_up_to_the_cap_and_are_shortened_by_half_at_most() -> None:
    policy = RetryPolicy(attempts=9, first_s=0.5, cap_s=10, seed=1)
    pauses = list(policy.pauses())
    longest = [0.5, 1, 2, 4, 8, 10, 10, 10]
    assert len(pauses) == 8
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, longest, strict=True))
    assert pauses == list(policy.pauses())
    assert pauses != list(RetryPolicy(attempts=9, first_s=0.5, cap_s=10, seed=2).pauses())
    assert list(RetryPolicy(attempts=1).pauses()) == []


def test_processes_that_fail_together_do_not_come_back_together() -> None:
    assert list(RetryPolicy().pauses()) != list(RetryPolicy().pauses())


def test_reasons_are_one_short_line() -> None:
    assert reason_of(OSError("a\n  b\t c")) == "a b c"
    assert reason_of(TimeoutError()) == "TimeoutError"
    assert len(reason_of(OSError("x" * 1000))) == 300
