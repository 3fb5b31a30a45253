"""The Triton kernels equal the oracle bit for bit where a pass has lines, two addresses, signs or random rounding."""

import pytest
import torch
from add_noise_cases import check_add_noise
from replay_cases import RUNS, check_replay, of_signs
from triton_cases import DEVICE, MARKS, few_steps  # noqa: F401
from update_cases import Piece, check_update, keys_of

from zokern.kernels import spans
from zokern.kernels import triton as backend

pytest.importorskip("triton", reason="pip install triton")
from zokern.kernels.triton import add_noise, update  # noqa: E402  (needs triton)

pytestmark = MARKS
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

CONTIGUOUS = [Piece(2 * 4096 + 13, 4096, 1), Piece(3, 5), Piece(0), Piece(1100, 2**20 + 128)]
LINES = [  # tiles of several lines or parts of them, of whole vectors and blocks of signs; and any lines
    Piece(9 * 1024, 4096, 1, columns=1024, gap=128, step=4 * 1024),
    Piece(40 * 128, 2**20, columns=128, gap=8, step=256),
    Piece(4096 + 7, 2**21, 1),
    Piece(7 * 13, 2**22, columns=13, gap=3, step=113),
    Piece(9, 2**40 + 3, 1, columns=1, gap=2, step=9),
    Piece(3 * 800, 2**23, columns=800, gap=8, step=896),
]
TILE = {"columns": 1536, "gap": 8, "step": 2048}
ANYWHERE = {  # what each of a kernel's choices must not change, one at a time
    "misaligned": Piece(4608, 4096, shift=1, **TILE),
    "a pitch that is no vector": Piece(4608, 4096, **TILE | {"gap": 3}),
    "columns that are no vector": Piece(3 * 1532, 4096, **TILE | {"columns": 1532, "gap": 12}),
    "a step that is no Philox block": Piece(4608, 4096, **TILE | {"step": 1538}),
    "a step that is no block of signs": Piece(4608, 4096, **TILE | {"step": 1600}),
    "a first that is no block of rounding": Piece(4608, 4100, **TILE),
    "across 2^34, for its step": Piece(4608, 2**34 - 4736, **TILE),
    "across 2^39": Piece(4608, 2**39 - 2048, **TILE),
    "past 2^39": Piece(4608, 2**40 + 2**39, **TILE),
}
MASKED = [Piece(4608, 4096, 1, 2**31, **TILE), Piece(90, 2**20, 0, 2**30, columns=9, gap=2, step=12), Piece(1100, 2**21)]
PASSES = [  # dtype of theta, dtype of out or None in place, whether it is rounded at random, signs
    *((dtype, out, False, False) for dtype, out in ((F32, None), (F32, F32), (F32, BF16), (F32, F16), (BF16, BF16), (F16, F16))),
    *((dtype, None, True, False) for dtype in (BF16, F16)),
    *((dtype, out, True, True) for dtype, out in ((F32, BF16), (F32, F16), (F32, None))),
    (BF16, None, False, True),
]


@pytest.fixture(autouse=True)
def one_span_a_tensor(few_steps, monkeypatch):  # noqa: F811
    """So that a small tensor is several blocks of one program; the interpreter is spared long steps for short lines."""
    monkeypatch.setattr(spans, "PROGRAMS", 1)
    if DEVICE == "cpu":
        monkeypatch.setattr(add_noise, "SLOW", 2048)
        monkeypatch.setattr(update, "ROW", 4096)


def kind(value):
    return {True: "yes", False: "no", None: "in place"}.get(value) or str(value).removeprefix("torch.")


@pytest.mark.parametrize("dtype, out, at_random, signs", PASSES, ids=kind)
@pytest.mark.parametrize("pieces", [CONTIGUOUS, LINES], ids=["contiguous", "lines"])
def test_out_of_place_rounding_and_signs(pieces, dtype, out, at_random, signs):
    check_add_noise(backend.add_noise_, dtype, out, pieces, keys_of(2, signs), not at_random, at_random, DEVICE)


def test_without_terms_out_is_a_copy():
    check_add_noise(backend.add_noise_, F32, BF16, LINES, [], device=DEVICE)


@pytest.mark.parametrize("signs", [False, True], ids=["normals", "signs"])
@pytest.mark.parametrize("piece", ANYWHERE.values(), ids=ANYWHERE)
def test_lines_anywhere(piece, signs):
    run = RUNS["one pass"]
    check_add_noise(backend.add_noise_, F32, BF16, [piece], keys_of(1, signs), at_random=True, device=DEVICE)
    check_replay(backend.replay_, BF16, [piece], of_signs(run) if signs else run, DEVICE)


@pytest.mark.parametrize("piece", ANYWHERE.values(), ids=ANYWHERE)
def test_update_of_lines_anywhere(piece):
    check_update(backend.update_, "momentum", BF16, BF16, [piece], keys_of(1, signs=True), at_random=True, device=DEVICE)


@pytest.mark.parametrize("signs", [False, True], ids=["normals", "signs"])
def test_masks_of_lines(signs):
    run = RUNS["one pass"]
    check_add_noise(backend.add_noise_, F32, BF16, MASKED, keys_of(3, signs), True, device=DEVICE)
    check_replay(backend.replay_, BF16, MASKED, of_signs(run) if signs else run, DEVICE)
    check_update(backend.update_, "sign", BF16, F32, MASKED, keys_of(1, signs), at_random=True, device=DEVICE)


@pytest.mark.parametrize("dtype, signs", [(F32, False), (F32, True), (BF16, True), (F16, False)], ids=kind)
@pytest.mark.parametrize("pieces", [CONTIGUOUS, LINES], ids=["contiguous", "lines"])
def test_a_run_of_passes(pieces, dtype, signs):
    run = RUNS["a step"]
    check_replay(backend.replay_, dtype, pieces, of_signs(run) if signs else run, DEVICE)


UPDATED = [
    ("sign", F16, F32, 1),
    ("momentum", F32, F32, 1),
    ("adam", BF16, BF16, 2),
    ("amsgrad", F32, BF16, 1),
    ("windowed-adam", F16, F32, 2),
]


@pytest.mark.parametrize("rule, dtype, state, n", UPDATED, ids=kind)
@pytest.mark.parametrize("pieces, signs", [(CONTIGUOUS, True), (LINES, False), (LINES, True)], ids=["signs", "lines", "lines of signs"])
def test_update(pieces, signs, rule, dtype, state, n):
    check_update(backend.update_, rule, dtype, state, pieces, keys_of(n, signs), n == 2, n == 2, DEVICE)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, out, at_random, signs", PASSES, ids=kind)
def test_many_lines(dtype, out, at_random, signs):
    pieces = [Piece(2**20, 4096, columns=1024, gap=3072, step=4096), Piece(999 * 1001, 2**30, columns=1001, gap=7, step=1024)]
    check_add_noise(backend.add_noise_, dtype, out, pieces, keys_of(2, signs), False, at_random, DEVICE)
