"""Mutations of bytes and of text, drawn from a seeded generator."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from random import Random
from typing import Literal

__all__ = ["MAX_BYTES", "Mutation", "mutate_bytes", "mutate_text", "span"]

MAX_BYTES = 1 << 20  # of one mutated file

Mutation = Callable[[Random, bytes], bytes]

_BOUNDARIES = [
    *(0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 100, 127, 128, 255, 256, 1000, 4095, 4096),
    *(32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
]
_NUMBERS = "nan NaN inf -inf 1e999 1e-999 -0 0 1 -1 1.5 0x10 1_0 1e5 +1 .5 5. 2147483648 9223372036854775808 0.1e-400"
_TOKENS = (
    *_NUMBERS.split(),
    *("9" * 40, "1" + "0" * 400, "\uff11", "\u0663", "\u00e9", "\ufeff", "\ud83d", "None", "null", "true", "false"),
    *("", " ", "\t", ",", ",,", ":", "::", '"', "'", "\\", "\n", "\r", "\r\n", "\x00", "\x0b", "\x1c"),
    *("{}", "[]", "[" * 2000, "..", "../x", "/etc/passwd", "a" * 5000),
)
_TOKEN = re.compile(rb"[-+.\w]+|[^-+.\w\s]|\s+")


def span(rng: Random, size: int, longest: int = 4096) -> tuple[int, int]:
    """A random range of a content, mostly a short one."""
    length = min(rng.choice((1, 2, 4, 8, 16, 64, 512, longest)), size)
    start = rng.randrange(size - length + 1) if size else 0
    return start, start + length


def _flip_bits(rng: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set_bytes(rng: Random, content: bytes) -> bytes:
    start, stop = span(rng, len(content), 64)
    fill = bytes([rng.choice((0, 0xFF, 0x7F, 0x80, rng.randrange(256)))])
    return content[:start] + fill * (stop - start) + content[stop:]


def _set_integer(rng: Random, content: bytes) -> bytes:
    """Overwrite an aligned or unaligned integer by one at the edge of some range, or by its neighbour."""
    width = rng.choice((1, 2, 4, 8))
    if len(content) < width:
        return content
    start = rng.randrange(len(content) - width + 1)
    if rng.random() < 0.5:
        start -= start % width
    order: Literal["little", "big"] = rng.choice(("little", "big"))
    now = int.from_bytes(content[start : start + width], order)
    value = rng.choice((rng.choice(_BOUNDARIES), -rng.choice(_BOUNDARIES), now + 1, now - 1, now * 2, now << 8))
    return content[:start] + (value % (1 << 8 * width)).to_bytes(width, order) + content[start + width :]


def _set_float(rng: Random, content: bytes) -> bytes:
    code = rng.choice(("<e", "<f", "<d", ">f", ">d"))
    size = struct.calcsize(code)
    if len(content) < size:
        return content
    start = rng.randrange(len(content) - size + 1)
    value = rng.choice((float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 6e4, 1e-7))
    return content[:start] + struct.pack(code, value) + content[start + size :]


def _delete(rng: Random, content: bytes) -> bytes:
    start, stop = span(rng, len(content))
    return content[:start] + content[stop:]


def _duplicate(rng: Random, content: bytes) -> bytes:
    start, stop = span(rng, len(content))
    return content[:stop] + content[start:stop] * rng.choice((1, 1, 2, 16)) + content[stop:]


def _insert(rng: Random, content: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice((1, 2, 4, 8, 64))) + content[at:]


def _zero(rng: Random, content: bytes) -> bytes:
    start, stop = span(rng, len(content))
    return content[:start] + bytes(stop - start) + content[stop:]


def _swap(rng: Random, content: bytes) -> bytes:
    (start, stop), (other, end) = sorted((span(rng, len(content)), span(rng, len(content))))
    if other < stop:
        return content[::-1] if rng.random() < 0.02 else content[stop:] + content[:stop]
    return content[:start] + content[other:end] + content[stop:other] + content[start:stop] + content[end:]


def _cut(rng: Random, content: bytes) -> bytes:
    return content[: rng.choice((rng.randrange(len(content)), len(content) - 1, len(content) // 2))]


def _extend(rng: Random, content: bytes) -> bytes:
    return content + rng.choice((b"\0", b"\n", rng.randbytes(16), bytes(4096), content, content[-64:]))


_WEIGHTS: Mapping[Mutation, int] = {
    **{_flip_bits: 6, _set_bytes: 3, _set_integer: 6, _set_float: 1, _delete: 2, _duplicate: 2, _insert: 2},
    **{_zero: 2, _swap: 1, _cut: 2, _extend: 1},
}


def mutate_bytes(rng: Random, content: bytes) -> bytes:
    """One mutation that knows nothing of the format."""
    if not content:
        return rng.randbytes(rng.choice((1, 8, 64)))
    [mutation] = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
    return mutation(rng, content)[:MAX_BYTES]


def mutate_text(rng: Random, content: bytes) -> bytes:
    """One mutation of a token or a line of a text."""
    if rng.random() < 0.5:
        lines = content.splitlines(keepends=True) or [b""]
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        edit = rng.randrange(5)
        if edit == 0:
            del lines[at]
        elif edit == 1:
            lines.insert(other, lines[at])
        elif edit == 2:
            lines[at], lines[other] = lines[other], lines[at]
        elif edit == 3:
            lines[at] = lines[at].rstrip(b"\r\n")
        else:
            lines[at] = lines[at].rstrip(b"\n") + b"\r\n"
        return b"".join(lines)
    tokens = _TOKEN.findall(content)
    if not tokens:
        return content + rng.choice(_TOKENS).encode("utf-8", "surrogatepass")
    at = rng.randrange(len(tokens))
    new = rng.choice(_TOKENS).encode("utf-8", "surrogatepass") if rng.random() < 0.7 else rng.choice(tokens)
    tokens[at] = rng.choice((new, tokens[at] + new, new + tokens[at]))
    return b"".join(tokens)[:MAX_BYTES]
