"""The log as text: a header line, then a line a step, each with a checksum of everything before it."""

import json
import math
import re
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..errors import BadInput
from ..noise import SPEC_VERSION

Header: TypeAlias = dict[str, Any]  # the first line: docs/trajectories.md

FORMAT = 1
NO_HEADER = "is not the header of a trajectory: pass a log that zokern.record wrote"
INFINITE = 3.4028235677973366e38  # the least float64 that is rounded to an infinite float32
ENDS = {8: (b',"crc":"%08x"}', 0xFFFFFFFF), 4: (b',"crc":"%04x"}', 0xFFFF)}  # digits -> (the end of a line, the part of the checksum in it)


def header_line(header: Header) -> str:
    """A header as the first line, with its own checksum."""
    body = _compact(header)[:-1]
    return f'{body},"crc":"{zlib.crc32(body.encode()):08x}"}}\n'


def step_line(step: int, measurements: Sequence[float], changes: dict[str, Any], crc: int) -> tuple[str, int]:
    """-> (a step's line, the checksum up to its end).

    Args:
        measurements: what is not finite is written as null.
        changes: name -> value of the settings that changed; written in this order.
        crc: the checksum up to the end of the line before.
    """
    texts = _float32(measurements)
    key, texts = ("exact", [repr(x) if math.isfinite(x) else "null" for x in measurements]) if texts is None else ("losses", texts)
    rest = "".join(f',"{name}":{_compact(value)}' for name, value in changes.items())
    body = f'{{"step":{step},"{key}":[{",".join(texts)}]{rest}'
    crc = zlib.crc32(body.encode(), crc)
    return f'{body},"crc":"{crc & 0xFFFF:04x}"}}\n', crc


def parse_header(path: Path, line: bytes) -> tuple[Header, int]:
    """-> (header, its checksum).

    Raises:
        BadInput: the line is no header that this zokern can use.
    """
    header = _parse(path, 1, line)
    try:
        json.dumps(header, ensure_ascii=False, allow_nan=False).encode()  # numbers and characters that cannot be written again
    except (ValueError, RecursionError):
        raise BadInput(f"{path}, line 1 {NO_HEADER}") from None
    if header.get("zokern") != "trajectory":
        raise BadInput(f"{path}, line 1 {NO_HEADER}")
    if header.get("format") != FORMAT:
        raise BadInput(f"{path}, line 1: format {shown(header.get('format'))}, this zokern reads {FORMAT}: use the zokern that wrote it")
    if (noise := header.get("noise_spec")) != SPEC_VERSION:
        raise BadInput(f"{path}, line 1: noise_spec={shown(noise)}, this zokern makes noise {SPEC_VERSION}: use the zokern that wrote it")
    crc = _checked(path, 1, line, 0, 8)
    del header["crc"]
    return header, crc


def parse_step(path: Path, number: int, line: bytes, step: int, crc: int) -> tuple[list[float], dict[str, Any], int]:
    """-> (measurements, changes, checksum) of line ``number``, which is to hold ``step``.

    Raises:
        BadInput: it is not that line as it was written.
    """
    found = _parse(path, number, line)
    given = found.pop("step", None)
    if given != step or type(given) is not int:
        raise BadInput(f"{path}, line {number} holds step {shown(given)} where step {step} is due: lines are missing or out of order")
    crc = _checked(path, number, line, crc, 4)
    del found["crc"]
    short = "losses" in found
    end, measurements = (INFINITE, found.pop("losses")) if short else (math.inf, found.pop("exact", None))
    try:
        for x in measurements:
            if not (-end < x < end if type(x) is float else x is None):
                raise TypeError
        if None in measurements:
            measurements = [math.nan if x is None else x for x in measurements]
        if short:
            measurements = array("f", measurements).tolist()
    except TypeError:
        raise BadInput(f"{path}, line {number} holds no measurements that can be read: restore it, or cut the log off before it") from None
    return measurements, found, crc


def shown(value: Any) -> str:
    """A value of a log, for a message."""
    try:
        text = repr(value)
    except RecursionError:
        text = "..."
    return text if len(text) < 80 else f"{text[:77]}..."


def _float32(measurements: Sequence[float]) -> list[str] | None:
    """The shortest decimals that give the same float32, null for what is not finite; None where one is no float32."""
    finite = [x for x in measurements if math.isfinite(x)]
    if array("f", finite).tolist() != finite:
        return None
    texts = [str(np.float32(x)) if math.isfinite(x) else "null" for x in measurements]
    read = array("f", [float(text) for text in texts if text != "null"])  # as float64 and rounded, as parse_step does it
    return texts if read.tolist() == finite else None


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        text = line.decode()
        found, end = _scan(text, 0)  # json.loads spends as long again on guessing the encoding
        if end != len(text) or not isinstance(found, dict):
            raise ValueError
        if text.count(":") != len(found):  # objects in it, or a name twice
            _decode_once(text)
    except (ValueError, StopIteration, RecursionError):
        what = NO_HEADER if number == 1 else "is not JSON, or cut off: restore it, or cut the log off before it"
        raise BadInput(f"{path}, line {number} {what}") from None
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name twice")
    return found


_compact = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_scan = json.JSONDecoder(parse_constant=_refuse).scan_once  # type: ignore[attr-defined]
_decode_once = json.JSONDecoder(object_pairs_hook=_object).decode


def _checked(path: Path, number: int, line: bytes, crc: int, digits: int) -> int:
    """-> the checksum of everything up to a line's end, which is compared with the one written there."""
    crc = zlib.crc32(line[: -10 - digits], crc)
    end, mask = ENDS[digits]
    if not line.endswith(end % (crc & mask)):
        what = "its checksum is another" if re.search(rb',"crc":"[0-9a-f]{%d}"}$' % digits, line) else "it does not end in a checksum"
        cure = "restore it" if number == 1 else "restore it, or cut the log off before it"
        raise BadInput(f"{path}, line {number} was edited: {what}; {cure}")
    return crc
