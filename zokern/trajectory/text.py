"""The log as text: a header line, and a line a step, each closed by a checksum of everything up to it."""

import json
import math
import re
import struct
import zlib
from array import array

import numpy as np

from ..errors import BadInput
from ..noise import SPEC_VERSION

FORMAT = 1
NO_HEADER = "is not the header of a trajectory: pass a log that zokern.record wrote"
FLOAT32 = 3.4028235677973366e38  # what is nearer to 0 is not rounded to infinity
SEALS = {8: (b',"crc":"%08x"}', 0xFFFFFFFF), 4: (b',"crc":"%04x"}', 0xFFFF)}  # by hex digits: what ends a line, and what it shows
_FLOAT = struct.Struct("f")


def header_line(header: dict) -> str:
    """A header as the first line, with its own checksum."""
    body = compact(header)[:-1]
    return f'{body},"crc":"{zlib.crc32(body.encode()):08x}"}}\n'


def step_line(step: int, measurements, changes: dict, crc: int) -> tuple[str, int]:
    """-> (a step's line, the checksum that goes on to the next).

    Args:
        measurements: floats; what is not finite is written as null.
        changes: settings, by name, in the order in which they are to stand.
        crc: of the line before; of a header its own.
    """
    texts = _float32(measurements)
    key, texts = ("exact", [repr(x) if math.isfinite(x) else "null" for x in measurements]) if texts is None else ("losses", texts)
    rest = "".join(f',"{name}":{compact(value)}' for name, value in changes.items())
    body = f'{{"step":{step},"{key}":[{",".join(texts)}]{rest}'
    crc = zlib.crc32(body.encode(), crc)
    return f'{body},"crc":"{crc & 0xFFFF:04x}"}}\n', crc


def parse_header(path, line: bytes) -> tuple[dict, int]:
    """-> (header, its checksum).

    Raises:
        BadInput: the line is no header that this zokern can use.
    """
    header = _json(path, 1, line)
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
    crc = _sealed(path, 1, line, 0, 8)
    del header["crc"]
    return header, crc


def parse_step(path, number: int, line: bytes, step: int, crc: int) -> tuple[list[float], dict, int]:
    """-> (measurements, changes, checksum) of line ``number``, which is to hold ``step``.

    Raises:
        BadInput: it is not that line as it was written.
    """
    held = _json(path, number, line)
    given = held.pop("step", None)
    if given != step or type(given) is not int:
        raise BadInput(f"{path}, line {number} holds step {shown(given)} where step {step} is due: lines are missing or out of order")
    crc = _sealed(path, number, line, crc, 4)
    del held["crc"]
    short = "losses" in held
    end, measurements = (FLOAT32, held.pop("losses")) if short else (math.inf, held.pop("exact", None))
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
    return measurements, held, crc


def compact(value) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def shown(value) -> str:
    """A value of a log, for a message."""
    try:
        text = repr(value)
    except RecursionError:
        text = "..."
    return text if len(text) < 80 else f"{text[:77]}..."


def _float32(measurements):
    """The shortest texts that give the same float32; None where a measurement is none."""
    texts = []
    for x in measurements:
        if not math.isfinite(x):
            texts.append("null")
            continue
        if abs(x) > 3.4028234663852886e38:
            return None
        text = str(np.float32(x))
        # Read as float64 and rounded, as parse_step does it.
        if _FLOAT.unpack(_FLOAT.pack(float(text)))[0] != x:
            return None
        texts.append(text)
    return texts


def _json(path, number, line):
    try:
        text = line.decode()
        held, end = _scan(text, 0)  # json.loads spends as long again on guessing the encoding
        if end != len(text) or not isinstance(held, dict):
            raise ValueError
        if text.count(":") != len(held):  # objects in it, or a name twice
            _decode_once(text)
    except (ValueError, StopIteration, RecursionError):
        what = NO_HEADER if number == 1 else "is not JSON, or cut off: restore it, or cut the log off before it"
        raise BadInput(f"{path}, line {number} {what}") from None
    return held


def _refuse(constant):
    raise ValueError(f"{constant} is no JSON")


def _object(pairs):
    held = dict(pairs)
    if len(held) < len(pairs):
        raise ValueError("a name twice")
    return held


_scan = json.JSONDecoder(parse_constant=_refuse).scan_once
_decode_once = json.JSONDecoder(object_pairs_hook=_object).decode


def _sealed(path, number, line, crc, digits):
    """-> the checksum of everything up to a line, in which that ends."""
    crc = zlib.crc32(line[: -10 - digits], crc)
    seal, shows = SEALS[digits]
    if not line.endswith(seal % (crc & shows)):
        what = "its checksum is another" if re.search(rb',"crc":"[0-9a-f]{%d}"}$' % digits, line) else "it does not end in a checksum"
        cure = "restore it" if number == 1 else "restore it, or cut the log off before it"
        raise BadInput(f"{path}, line {number} was edited: {what}; {cure}")
    return crc
