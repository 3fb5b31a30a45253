"""Where the elements of a span lie and which Philox blocks are theirs: in tiles of lanes that take a vector each, or one by one."""

import triton
import triton.language as tl

ENDLESS = tl.constexpr(1 << 31)  # columns, pitch and step alike, by which every element is where it is in one line


@triton.jit
def load_span(spans, PITCHED: tl.constexpr):
    """The ten numbers of this program's ``tables.Row``. A single line is made one that never ends, whatever its columns were."""
    spans += 10 * tl.program_id(0)
    address, pitch, out, out_pitch = tl.load(spans), tl.load(spans + 1), tl.load(spans + 2), tl.load(spans + 3)
    numel, columns, first, step = tl.load(spans + 4), tl.load(spans + 5), tl.load(spans + 6), tl.load(spans + 7)
    if PITCHED:
        single = columns == numel
        columns, step = tl.where(single, ENDLESS, columns), tl.where(single, ENDLESS, step)
        pitch, out_pitch = tl.where(single, ENDLESS, pitch), tl.where(single, ENDLESS, out_pitch)
    return address, pitch, out, out_pitch, numel, columns, first, step, tl.load(spans + 8), tl.load(spans + 9).to(tl.uint32)


@triton.jit
def whole_tiles(
    addresses, pitch, out_pitch, numel, columns, first, step, EACH: tl.constexpr, ALIGN: tl.constexpr, PITCHED: tl.constexpr
):  # fmt: skip
    """Whether a span is made of vectors of 16 bytes at ``addresses``, or-ed, and of blocks of ALIGN elements which one high counter word
    serves."""
    whole = ((addresses & 15) == 0) & ((first & (ALIGN - 1)) == 0)
    if PITCHED:
        last = first + (numel - 1) // columns * step + (numel - 1) % columns
        whole &= (((pitch | out_pitch | columns) & (EACH - 1)) == 0) & (((columns | step) & (ALIGN - 1)) == 0)
        whole &= ((numel | pitch | out_pitch) >> 32) == 0
    else:
        last = first + numel - 1
    return whole & ((first >> 34) == (last >> 34))


@triton.jit
def lanes_of(LANES: tl.constexpr, EACH: tl.constexpr, SIGNS: tl.constexpr):
    """(begin, inside): each lane's EACH elements begin at begin + inside of a tile, ``inside`` a Philox block that begins at ``begin``.

    Of normals, lanes lie in a row. A block of signs serves 128 elements: four lanes take 64 or 128 bytes of it, and the next such part
    goes to lanes a whole number of warps later, which are the same threads. The compiler sees that their block is one, and makes it once.
    """
    lane = tl.arange(0, LANES)
    if SIGNS:
        QUADS: tl.constexpr = LANES * EACH // 32
        return lane % QUADS // 4 * 128, lane // QUADS * (4 * EACH) + lane % 4 * EACH
    else:
        return lane * EACH, tl.zeros_like(lane)


# A tile that is one line begins at ``at`` in memory as in the noise, and its lanes' line is 0. Of lines, ``at`` is within ``line``.
@triton.jit
def reciprocal_of(columns):
    return (0xFFFFFFFF // columns).to(tl.uint64)


@triton.jit
def line_of(at, begin, columns, reciprocal, PITCHED: tl.constexpr):
    """(line, column) where lanes begin, uint32. By ``reciprocal`` a quotient is short by one at most."""
    if PITCHED:
        j, columns = (at + begin).to(tl.uint32), columns.to(tl.uint32)
        line = ((j.to(tl.uint64) * reciprocal) >> 32).to(tl.uint32)
        column = j - line * columns
        short = column >= columns
        return tl.where(short, line + 1, line), tl.where(short, column - columns, column)
    else:
        return tl.zeros_like(begin).to(tl.uint32), begin.to(tl.uint32)


@triton.jit
def place(line, column, pitch, PITCHED: tl.constexpr):
    """How many elements after the first a line's column lies in memory."""
    if PITCHED:
        return (line.to(tl.uint64) * pitch.to(tl.uint32) + column).to(tl.int64)
    else:
        return column.to(tl.int32)


@triton.jit
def blocks_of(first, at, line, column, step, SHIFT: tl.constexpr, PITCHED: tl.constexpr):
    """Low counter words of the blocks of 2^SHIFT elements that hold lanes' columns."""
    if PITCHED:
        return (first >> SHIFT).to(tl.uint32) + line * (step >> SHIFT).to(tl.uint32) + (column >> SHIFT)
    else:
        return ((first >> SHIFT) + (at >> SHIFT)).to(tl.uint32) + (column >> SHIFT)


@triton.jit
def element_of(j, columns, PITCHED: tl.constexpr):
    """(line, column) of elements j, int64."""
    if PITCHED:
        line = j // columns
        return line, j - line * columns
    else:
        return tl.zeros_like(j), j
