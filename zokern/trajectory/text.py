"""The log as text: a header line, and a line a step, each closed by a checksum of everything up to it."""

import json
import math
import struct
import zlib
from array import array

import numpy as np

from ..errors import BadInput
from ..noise import SPEC_VERSION

FORMAT = 1
KEYS = ("version", "optimizer", "groups", "parameters", "fingerprint", "notes")  # of a header, beside those that say what it is
_FLOAT = struct.Struct("f")
_decode = json.JSONDecoder().decode


def header_line(header: dict) -> str:
    """A header as the first line, with its own checksum."""
    body = compact(header)[:-1]
    return f'{body},"crc":"{zlib.crc32(body.encode()):08x}"}}\n'


def step_line(step: int, readings, changes: dict, crc: int) -> tuple[str, int]:
    """-> (a step's line, the checksum that goes on to the next).

    Args:
        readings: floats; what is not finite is written as null.
        changes: settings, by name, in the order in which they are to stand.
        crc: of the line before; of a header its own.
    """
    texts = _float32(readings)
    key, texts = ("exact", [repr(x) if math.isfinite(x) else "null" for x in readings]) if texts is None else ("losses", texts)
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
    if header.get("zokern") != "trajectory":
        raise BadInput(f"{path}, line 1 is not the header of a trajectory: pass a log that zokern.record wrote")
    if header.get("format") != FORMAT:
        raise BadInput(f"{path}, line 1: format {header.get('format')!r}, this zokern reads {FORMAT}: use the zokern that wrote it")
    if header.get("noise_spec") != SPEC_VERSION:
        raise BadInput(
            f"{path}, line 1: noise_spec={header.get('noise_spec')!r}, this zokern makes noise {SPEC_VERSION}: use the zokern that wrote it"
        )
    body, crc = _body(path, 1, line, 8)
    if header.pop("crc") != f"{zlib.crc32(body):08x}":
        raise BadInput(f"{path}, line 1 was edited: its checksum is another; restore it")
    missing = [key for key in KEYS if key not in header]
    if missing:
        raise BadInput(f"{path}, line 1 lacks {missing[0]!r}: restore it")
    return header, zlib.crc32(body)


def parse_step(path, number: int, line: bytes, step: int, crc: int) -> tuple[list[float], dict, int]:
    """-> (readings, changes, checksum) of line ``number``, which is to hold ``step``.

    Raises:
        BadInput: it is not that line as it was written.
    """
    held = _json(path, number, line)
    if held.get("step") != step:
        raise BadInput(f"{path}, line {number} holds step {held.get('step')!r} where step {step} is due: lines are missing or out of order")
    body, given = _body(path, number, line, 4)
    crc = zlib.crc32(body, crc)
    if given != f"{crc & 0xFFFF:04x}":
        raise BadInput(f"{path}, line {number} was edited: its checksum is another; restore it, or cut the log off before it")
    del held["step"], held["crc"]
    try:
        if "losses" in held:
            losses = held.pop("losses")
            readings = array("f", [math.nan if x is None else x for x in losses] if None in losses else losses).tolist()
        else:
            readings = [math.nan if x is None else float(x) for x in held.pop("exact")]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise BadInput(f"{path}, line {number} holds no readings that can be read: restore it, or cut the log off before it") from None
    return readings, held, crc


def compact(value) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _float32(readings):
    """The shortest texts that give the same float32; None where a reading is none."""
    texts = []
    for x in readings:
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
        held = _decode(line.decode())  # json.loads spends as long again on guessing the encoding
    except ValueError:
        held = None
    if not isinstance(held, dict):
        raise BadInput(f"{path}, line {number} is not JSON, or cut off: restore it, or cut the log off before it")
    return held


def _body(path, number, line, digits):
    """-> (what the checksum of a line is of, the checksum that it gives)."""
    cut = len(line) - digits - len(',"crc":""}')
    if cut < 0 or line[cut : cut + 8] != b',"crc":"' or line[-2:] != b'"}':
        raise BadInput(f"{path}, line {number} was edited: it does not end in a checksum; restore it, or cut the log off before it")
    return line[:cut], line[-2 - digits : -2].decode("ascii", "replace")
