"""The machine that executes PTX in other tests: what its instructions do, that threads part and meet, and which faults it names."""

import numpy as np
import pytest
import torch
from ptx.instructions import Unknown
from ptx.machine import kernels_in
from ptx.memory import Memory

MODULE = """
.visible .entry kernel(
	.param .u64 kernel_param_0,
	.param .align 8 .b8 kernel_param_1[12]
)
.reqntid 8
{
	.reg .pred 	%%p<4>;
	.reg .b16 	%%rs<4>;
	.reg .f32 	%%f<4>;
	.reg .b32 	%%r<9>;
	.reg .b64 	%%rd<9>;
	ld.param.u64 	%%rd1, [kernel_param_0];
	cvta.to.global.u64 %%rd2, %%rd1;
	mov.u32 	%%r1, %%tid.x;
	mul.wide.u32 	%%rd3, %%r1, 4;
	add.s64 	%%rd4, %%rd2, %%rd3;  // where each of the eight threads has four bytes of its own
%s
	ret;
}
"""


def run(body, words=(0,) * 8, parameter=bytes(12)):
    """-> the eight words after it."""
    tensor, memory = torch.from_numpy(np.array([7, *words, 7], np.uint32).view(np.int32)), Memory()
    own = tensor[1:9]
    memory.hand(own)
    kernels_in(MODULE % body)["kernel"].run(memory, 1, 8, [own.data_ptr().to_bytes(8, "little"), parameter])
    assert tensor[0] == tensor[-1] == 7
    return own.numpy().view(np.uint32).tolist()


def test_threads_part_and_meet():
    """As many turns of a loop as the thread's number; odd ones take another way through it."""
    body = """
	mov.u32 %r2, 0;
	mov.u32 %r3, 0;
	and.b32 %r4, %r1, 1;
	setp.eq.s32 %p1, %r4, 1;
$again: setp.ge.u32 %p2, %r2, %r1;
	@%p2 bra $out;
	add.s32 %r2, %r2, 1;
	@!%p1 bra $even;
	add.s32 %r3, %r3, 100;
	bra.uni $again;
$even:
	{ .reg .b32 one; mov.b32 one, 1;
	add.s32 %r3, %r3, one;}
	bra.uni $again;
$out: @%p1 add.s32 %r3, %r3, 0x10000;
	st.global.u32 [%rd4], %r3;"""
    assert run(body) == [(100 * t + 0x10000) if t % 2 else t for t in range(8)]


ONE, NAN = 0x3F800000, 0x7FC00001
INSTRUCTIONS = {  # of words a and b: what it writes into %r4
    "mul.hi.u32 %r4, %r2, %r3": lambda a, b: a * b >> 32,
    "mul.lo.s32 %r4, %r2, %r3": lambda a, b: a * b,
    "mad.wide.s32 %rd5, %r2, %r3, -1; shr.u64 %rd5, %rd5, 32; cvt.u32.u64 %r4, %rd5": lambda a, b: signed(a) * signed(b) - 1 >> 32,
    "shl.b32 %r4, %r2, %r3": lambda a, b: a << b if b < 32 else 0,
    "shr.s32 %r4, %r2, %r3": lambda a, b: signed(a) >> min(b, 31),
    "shf.l.wrap.b32 %r4, %r2, %r3, 33": lambda a, b: b << 1 | a >> 31,
    "shf.r.wrap.b32 %r4, %r2, %r3, 1": lambda a, b: a >> 1 | b << 31,
    "prmt.b32 %r4, %r2, %r3, 0x5410": lambda a, b: a & 0xFFFF | b << 16,
    "prmt.b32 %r4, %r2, %r3, 0xF321": lambda a, b: a >> 8 | (b >> 31) * 0xFF000000,
    "lop3.b32 %r4, %r2, %r3, 255, 0xCA": lambda a, b: a & b | ~a & 255,
    "bfe.u32 %r4, %r2, 4, 8": lambda a, b: a >> 4 & 255,
    "min.s32 %r4, %r2, %r3": lambda a, b: min(signed(a), signed(b)),
    "cvt.u16.u32 %rs1, %r2; cvt.s32.s16 %r4, %rs1": lambda a, b: (a & 0xFFFF) - (a & 0x8000) * 2,
    "setp.ltu.f32 %p1, %r2, 0f3F800000; selp.b32 %r4, 5, 6, %p1": lambda a, b: 5 if (a < ONE or a >> 31 or a == NAN) else 6,
    "setp.ne.f32 %p1, %r2, 0f3F800000; selp.b32 %r4, 5, 6, %p1": lambda a, b: 6 if a in (ONE, NAN, 0xFFFFFFFF) else 5,
    "setp.eq.s32 %p1, %r2, 1; setp.lt.or.u32 %p2, %r3, 9, %p1; selp.b32 %r4, 5, 6, %p2": lambda a, b: 5 if b < 9 or a == 1 else 6,
    "mul.rn.f32 %r4, %r2, 0fBF800000": lambda a, b: 0x7FFFFFFF if a in (NAN, 0xFFFFFFFF) else a ^ 1 << 31,
    "add.rn.ftz.f32 %r4, %r2, %r2": lambda a, b: (
        0x7FFFFFFF if a in (NAN, 0xFFFFFFFF) else a + (1 << 23) if a << 1 & 0xFF000000 else a & 1 << 31
    ),
    "{ .reg .b16 low, high; mov.b32 {low, high}, %r2; cvt.u32.u16 %r4, high; } { .reg .b32 low; mov.b32 low, %r4; mov.b32 %r4, low; }": (
        lambda a, b: a >> 16
    ),
    "mov.b64 %rd5, {%r2, %r3}; mov.b64 {_, %r4}, %rd5": lambda a, b: b,
    "cvt.rn.bf16x2.f32 %r4, 0f3F818000, 0f3F808000": lambda a, b: 0x3F823F80,
    "cvt.rn.f16.f32 %rs1, %r2; cvt.f32.f16 %r4, %rs1": lambda a, b: 0x7FFFFFFF if a in (NAN, 0xFFFFFFFF) else a & 1 << 31,
    "ld.param.u32 %r4, [kernel_param_1+4]": lambda a, b: 0x04030201,
    "ld.global.s8 %r4, [%rd4]": lambda a, b: (a & 127) - (a & 128),
}
WORDS = [0, 1, 31, 32, 0x80000000, 0xFFFFFFFF, NAN, 0x12345678]


def signed(a):
    return a - (a >> 31 << 32)


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_an_instruction(instruction):
    for b in WORDS:
        body = f"ld.global.u32 %r2, [%rd4]; mov.u32 %r3, {b}; {instruction}; st.global.u32 [%rd4], %r4;"
        got = run(body, WORDS, bytes([0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0]))
        assert got == [INSTRUCTIONS[instruction](a, b) % 2**32 for a in WORDS]


FAULTS = {
    "ld.global.u32 %r2, [%rd4+2];": "an access of 4 bytes at 0x[0-9a-f]+, which is no multiple",
    "ld.global.v2.u32 {%r2, %r3}, [%rd4];": "an access of 8 bytes at 0x[0-9a-f]+, (which is no multiple|outside)",
    "st.global.u32 [%rd4+4], %r1;": "outside of all that was handed over",
    "ld.global.u32 %r2, [%rd4+-4];": "outside of all that was handed over",
    "ld.param.u64 %rd5, [kernel_param_1+8];": "outside of all that was handed over",
    "st.global.u16 [%rd2], %rs1;": "is stored twice",
    "st.global.u32 [%rd4], %r1; ld.global.u8 %r2, [%rd2+9];": "is stored by one thread and read by another",
    "$here: bra $here;": "come to no end",
}


@pytest.mark.parametrize("body", FAULTS)
def test_a_fault_is_named(body):
    with pytest.raises(AssertionError, match=FAULTS[body]):
        run(body)


@pytest.mark.parametrize(
    "instruction",
    ["mul.f32 %f1, %f2, %f3", "fma.rz.f32 %f1, %f2, %f3, %f1", "div.approx.f32 %f1, %f2, %f3", "ex2.approx.f32 %f1, %f2"]
    + ["ld.shared.u32 %r1, [%rd1]", "bar.sync 0", "cvt.rz.f32.s32 %f1, %r1", "mov.u32 %r2, %laneid", "add.cc.u32 %r1, %r2, %r3"],
)
def test_what_is_not_known_is_refused(instruction):
    with pytest.raises(Unknown, match=instruction.split()[0]):
        run(f"{instruction};")


def test_only_what_a_view_covers_may_be_reached():
    memory, whole = Memory(), torch.zeros(4, 10, 6)
    memory.hand(whole[1:3, 2:5, ::2])
    start, size = whole.data_ptr(), whole.element_size()
    assert sorted(memory.intervals) == [
        (at, at + size) for i in (1, 2) for j in (2, 3, 4) for k in (0, 2, 4) for at in [start + size * (60 * i + 6 * j + k)]
    ]
    memory = Memory()
    memory.hand(whole.transpose(0, 2)[:, :, 1:3])
    assert memory.intervals == {(start + 60 * size, start + 180 * size)}
