"""Random changes to valid content: of bytes, of text, and of plain values (JSON and YAML) node by node."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    7,
    255,
    65_536,
    2**31,
    2**53,
    2**63,
    -(2**63),
    10**400,
    0.0,
    -0.5,
    1e-300,
    1e308,
    float("inf"),
    float("nan"),
    "",
    " ",
    "0",
    "-1",
    "L3H5",
    "L3H5 ",
    "L٣H5",
    "L9999H9999",
    "demo",
    "..",
    "../../etc/passwd",
    "/dev/zero",
    "a/b",
    "a\\b",
    "\x00",
    "\x1b[2J",
    "\u202e",
    "\ud83d\ude00",
    "ü" * 300,
    "x" * 5_000,
    "%s{}{0}",
    "${HOME}",
    "NaN",
    "null",
    "2001-99-99",
    "1:60:60",
    "!!python/object/apply:os.system [id]",
    [],
    {},
    [[]],
    [None],
    {"": None},
    [0] * 50,
    ["L3H5", "L3H5"],
    {"a": {"b": {"c": []}}},
    "F32",
    "F64",
    "I8",
    "F8_E4M3",
    "U128",
    [1, 2, 3],
    [2**62, 4],
    [-1],
    [0, 0],
    [0, 2**63],
)
WORDS = (
    b"\x00",
    b"\xff" * 8,
    b"\x7f\xff\xff\xff",
    b"\n",
    b",",
    b'"',
    b"'",
    b"{",
    b"[",
    b"- ",
    b": ",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!float ",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"%",
    b"\t",
    b"\r\n",
    b"#",
    b"|\n",
    b"\x1a",
    b"9" * 400,
)


def change_bytes(generator: random.Random, data: bytes, *, most: int = 6) -> bytes:
    """A few changes at random places; sometimes everything after one is cut off."""
    found = bytearray(data)
    for _ in range(generator.randint(1, most)):
        at = generator.randrange(len(found) + 1)
        length = min(len(found) - at, generator.choice((1, 1, 2, 4, 8, 64, 512)))
        generator.choice(_CHANGES)(generator, found, at, length)
    return bytes(found)


def _flip(generator: random.Random, found: bytearray, at: int, length: int) -> None:
    if length:
        found[at] ^= 1 << generator.randrange(8)


def _insert(generator: random.Random, found: bytearray, at: int, length: int) -> None:
    found[at:at] = generator.choice(WORDS)


def _delete(generator: random.Random, found: bytearray, at: int, length: int) -> None:
    del found[at : at + length]


def _repeat(generator: random.Random, found: bytearray, at: int, length: int) -> None:
    found[at:at] = found[at : at + length] * generator.choice((1, 2, 20))


def _number(generator: random.Random, found: bytearray, at: int, length: int) -> None:
    kind = generator.choice("BHIQ")
    bits = 8 * struct.calcsize(kind)
    packed = struct.pack(generator.choice("<>") + kind, generator.choice((0, 1, 2 ** (bits - 1), 2**bits - 1)))
    found[at : at + len(packed)] = packed


def _noise(generator: random.Random, found: bytearray, at: int, length: int) -> None:
    found[at : at + length] = generator.randbytes(length)


def _cut(generator: random.Random, found: bytearray, at: int, length: int) -> None:
    if generator.random() < 0.3:
        del found[at:]


_CHANGES = (_flip, _flip, _insert, _delete, _repeat, _number, _noise, _cut)


def change_lines(generator: random.Random, text: str, separators: str = ",:-") -> str:
    """Lines and fields taken away, doubled, exchanged or replaced."""
    lines = text.split("\n")
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(lines))
        kind = generator.randrange(6)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, lines[generator.randrange(len(lines))])
        elif kind == 2:
            lines[at] = generator.choice((" ", "\t", "  ")) + lines[at]
        elif kind == 3:
            lines[at] = _plain(generator.choice(NASTY))
        else:
            mark = generator.choice(separators)
            fields = lines[at].split(mark)
            fields[generator.randrange(len(fields))] = _plain(generator.choice(NASTY))
            lines[at] = mark.join(fields)
        lines = lines or [""]
    return "\n".join(lines)


def change_value(generator: random.Random, value: Any, nasty: tuple[Any, ...] = NASTY) -> Any:
    """A plain value with one to three of its nodes replaced, removed, renamed, doubled or wrapped."""
    found = {"root": copy.deepcopy(value)}
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        holder, key = generator.choice(_places(found))
        kind = generator.randrange(10)
        if kind < 6:
            holder[key] = copy.deepcopy(generator.choice(nasty))
        elif kind == 6 and holder is not found:
            del holder[key]
        elif kind == 7 and isinstance(holder, dict) and holder is not found:
            holder[str(generator.choice(nasty))] = holder.pop(key)
        elif kind == 8:
            holder[key] = [holder[key]] * generator.choice((1, 2, 30))
        else:
            holder[key] = (
                {"value": holder[key]} if generator.random() < 0.5 else holder[generator.choice(_keys(holder))]
            )
    return found["root"]


def encode_json(generator: random.Random, value: Any) -> bytes:
    """JSON; now and then changed once more as bytes."""
    data = json.dumps(value).encode()
    return change_bytes(generator, data, most=2) if generator.random() < 0.15 else data


def pick(generator: random.Random, *functions: Callable[[], bytes]) -> bytes:
    """One of several ways to make an input."""
    return generator.choice(functions)()


def _places(found: Any) -> list[tuple[Any, Any]]:
    places, level = [], [found]
    while level:
        holder = level.pop()
        for key in _keys(holder):
            places.append((holder, key))
            if isinstance(holder[key], dict | list) and holder[key]:
                level.append(holder[key])
    return places


def _keys(holder: Any) -> list[Any]:
    return list(holder) if isinstance(holder, dict) else list(range(len(holder)))


def _plain(value: Any) -> str:
    return str(value).encode("utf-8", "replace").decode() if isinstance(value, str) else json.dumps(value)
