"""What the PTX instructions of our kernels make of their operands: arrays, one value a thread, of the type that the instruction names."""

import operator

import numpy as np

from zokern.noise import reference

# Floats of 16 bits are only ever converted, and lie in registers as bits.
TYPES = {f"{kind}{bits}": np.dtype(f"{'i' if kind == 's' else 'u'}{bits // 8}") for kind in "bus" for bits in (8, 16, 32, 64)}
TYPES |= {"f32": np.dtype("f4"), "f16": np.dtype("u2"), "bf16": np.dtype("u2"), "f16x2": np.dtype("u4"), "bf16x2": np.dtype("u4")}
TYPES["pred"] = np.dtype(bool)

NOT_A_NUMBER = np.uint32(0x7FFFFFFF).view(np.float32)  # the one that arithmetic makes


class Unknown(NotImplementedError):
    """An instruction, or a form of one, that is not written down here."""


def unknown(what):
    raise Unknown(what)


def canonical(x):
    return np.where(np.isnan(x), NOT_A_NUMBER, x)


def integers(function):
    return lambda modifiers, *operands: unknown(f".{modifiers}") if modifiers else function(*operands)


def floats(function):
    """Rounded to nearest even. Where the name does not say so, ptxas would be free to make a product and a sum one fma. With ".ftz" what is
    below the normal numbers is 0."""

    def rounded(modifiers, *operands):
        if modifiers == ["rn", "ftz"]:
            return flush(canonical(function(*map(flush, operands))))
        return canonical(function(*operands)) if modifiers == ["rn"] else unknown(f"{modifiers} is not .rn")

    return rounded


def flush(x):
    return np.where(np.abs(x) < np.finfo("f4").tiny, np.copysign(np.float32(0), x), x)


def either(of_integers, of_floats):
    return lambda modifiers, *operands: (of_floats if operands[0].dtype.kind == "f" else of_integers)(modifiers, *operands)


def wide(x):
    return x.astype(f"{x.dtype.kind}{2 * x.itemsize}")


PRODUCTS = {
    "lo": operator.mul,
    "hi": lambda a, b: (wide(a) * wide(b) >> 8 * a.itemsize).astype(a.dtype),
    "wide": lambda a, b: wide(a) * wide(b),
}


def product(modifiers, a, b, c=0):
    return PRODUCTS[modifiers[0]](a, b) + c


def shift(function):
    """By a count of 32 bits; all that are more than the width are the width, by which NumPy does not shift at once."""

    def shifted(x, count):
        count = np.minimum(count, 8 * x.itemsize)
        return function(function(x, (count // 2).astype(x.dtype)), (count - count // 2).astype(x.dtype))

    return integers(shifted)


def funnel_shift(modifiers, low, high, count):
    side, beyond = modifiers
    both, count = high.astype("u8") << 32 | low, (count & 31).astype("u8")
    if beyond != "wrap":
        unknown(beyond)
    return ((both >> count) if side == "r" else (both << count) >> 32).astype("u4")


def permute(a, b, selector):
    """Four bytes of eight, each the one that four bits of the selector name; the fourth bit: its sign, all over."""
    both = b.astype("u8") << 32 | a
    nibbles = [selector >> 4 * k & 15 for k in range(4)]
    named = [both >> (nibble & 7).astype("u8") * 8 & 255 for nibble in nibbles]
    taken = [np.where(nibble & 8, (byte >> 7) * 255, byte).astype("u4") for nibble, byte in zip(nibbles, named)]
    return taken[0] | taken[1] << 8 | taken[2] << 16 | taken[3] << 24


def logic(a, b, c, table):
    """Any function of three bits, by its truth table."""
    rows = [(table >> k & 1) * ((a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)) for k in range(8)]
    return np.bitwise_or.reduce(np.broadcast_arrays(*rows))


def field(x, start, count):
    below = (np.uint64(1) << np.minimum(count & 255, 63).astype("u8")) - np.uint64(1)
    return (x.astype("u8") >> np.minimum(start & 255, 63).astype("u8") & below).astype(x.dtype)


COMPARISONS = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal}
COMPARISONS |= {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal, "ne": lambda a, b: (a < b) | (a > b)}
COMPARISONS |= {"num": lambda a, b: (a == a) & (b == b), "nan": lambda a, b: (a != a) | (b != b)}
COMPARISONS |= {
    f"{name}u": lambda a, b, c=COMPARISONS[name]: c(a, b) | (a != a) | (b != b) for name in ("lt", "le", "gt", "ge", "eq", "ne")
}
COMBINATIONS = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


def compare(modifiers, a, b, *predicates):
    how, *combinations = modifiers
    result = COMPARISONS[how](a, b)
    return COMBINATIONS[combinations[0]](result, *predicates) if combinations else result


def to_bfloat16(x):
    u = x.view("u4")
    return np.where(np.isnan(x), 0x7FFF, u + 0x7FFF + (u >> 16 & 1) >> 16).astype("u2")


def to_float16(x):
    return np.where(np.isnan(x), 0x7FFF, x.astype("f2").view("u2")).astype("u2")


NARROW = {"bf16": to_bfloat16, "f16": to_float16}
WIDEN = {"bf16": lambda x: (x.astype("u4") << 16).view("f4"), "f16": lambda x: canonical(x.view("f2").astype("f4"))}


def convert(modifiers, *operands):
    *rounding, to, of = modifiers
    if rounding == ["rn"] and of == "f32" and to in NARROW:
        return NARROW[to](*operands)
    if rounding == ["rn"] and of == "f32" and to.removesuffix("x2") in NARROW:
        high, low = map(NARROW[to.removesuffix("x2")], operands)
        return high.astype("u4") << 16 | low
    if not rounding and to == "f32" and of in WIDEN:
        return WIDEN[of](*operands)
    if rounding == ["rzi"] and of == "f32" and to in ("u32", "s32"):  # no number is 0, and what is too large the largest
        bounds = np.iinfo(TYPES[to])
        return np.clip(np.nan_to_num(np.trunc(operands[0]).astype("f8")), bounds.min, bounds.max).astype(TYPES[to])
    if of[0] in "us" and (rounding == ["rn"] and to == "f32" or not rounding and to[0] in "us"):
        return operands[0].astype(TYPES[to])
    return unknown("such a conversion")


# What is written between the name and the type, and the operands -> the result. Nothing else is executed.
RESULTS = {
    "add": either(integers(operator.add), floats(operator.add)),
    "sub": either(integers(operator.sub), floats(operator.sub)),
    "mul": either(product, floats(operator.mul)),
    "mad": product,
    "fma": floats(reference.fma),
    "div": either(integers(np.floor_divide), floats(np.divide)),
    "rem": integers(np.remainder),
    "sqrt": floats(np.sqrt),
    "neg": either(integers(operator.neg), lambda modifiers, x: -x),
    "abs": either(integers(np.abs), lambda modifiers, x: np.abs(x)),
    "min": integers(np.minimum),
    "max": integers(np.maximum),
    "and": integers(operator.and_),
    "or": integers(operator.or_),
    "xor": integers(operator.xor),
    "not": integers(operator.invert),
    "lop3": integers(logic),
    "shl": shift(operator.lshift),
    "shr": shift(operator.rshift),
    "shf": funnel_shift,
    "bfe": integers(field),
    "prmt": integers(permute),
    "selp": integers(lambda yes, no, predicate: np.where(predicate, yes, no)),
    "setp": compare,
    "cvt": convert,
    "cvta": lambda modifiers, x: x,  # there is one space of addresses
}


def operand_types(name, modifiers, kind, count):
    """Of what is read, by the type in the instruction's name."""
    if name in ("shl", "shr", "bfe"):
        return [kind, *["u32"] * (count - 1)]
    if name in ("selp", "setp"):
        return [kind, kind, "pred"][:count]
    if name == "mad" and modifiers == ["wide"]:
        return [kind, kind, f"{kind[0]}{2 * int(kind[1:])}"]
    return [kind] * count
