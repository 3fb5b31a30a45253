"""Executes PTX, the code that nvcc and Triton make of our kernels, with all threads of a launch at once as NumPy arrays.

Every thread has a place in the code. What is at the lowest place of any runs first, for the threads that are there: those that left a
loop wait behind it for the others. Nothing is known of ptxas, of time, or of waiting: our threads share nothing (memory.py sees to it).
"""

import re
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .instructions import RESULTS, TYPES, Unknown, operand_types, unknown

ALL = slice(None)  # threads
MOST = 100_000  # stretches of code without a jump that a launch runs through
SPACES = {"global", "param", "nc", "L1::evict_first", "L1::evict_last", "L1::no_allocate"}  # and hints, of ld and st


class Parameter(NamedTuple):
    name: str
    offset: int
    size: int


class Kernel:
    def __init__(self, name, parameters, body):
        self.name, self.body, self.parameters, end = name, body, [], 0
        for declared in filter(None, map(str.strip, parameters.split(",\n"))):
            pattern = r"\.param(?:\s+\.align (\d+))?\s+\.[bufs](\d+)\b.*?\s(\w+)(?:\[(\d+)\])?"
            align, bits, called, count = re.fullmatch(pattern, declared).groups()
            item = int(bits) // 8
            offset = -(-end // int(align or item)) * int(align or item)
            end = offset + item * int(count or 1)
            self.parameters.append(Parameter(called, offset, end - offset))
        self.size = end

    @cached_property
    def code(self):
        return Code(self.body)

    def run(self, memory, blocks, threads, arguments):
        """``arguments``: the bytes of each parameter."""
        space = np.zeros(self.size // 16 + 1, np.complex128)  # aligned to 16 bytes
        where = {}
        for parameter, value in zip(self.parameters, arguments, strict=True):
            space.view(np.uint8)[parameter.offset :][: parameter.size] = np.frombuffer(value, np.uint8)
            where[parameter.name] = space.ctypes.data + parameter.offset
        with memory.launch(space.ctypes.data, self.size), np.errstate(all="ignore"):
            Launch(self.code, memory, blocks, threads, where).run()


def kernels_in(text):
    """{name: Kernel} of a module."""
    entries = re.findall(r"\.entry\s+(\w+)\s*\((.*?)\)[^{]*\{\n(.*?)^\}", text, re.S | re.M)
    return {name: Kernel(name, parameters, body) for name, parameters, body in entries}


class Code:
    """The steps of a kernel, where its labels are, and the types of its registers."""

    def __init__(self, body):
        statements, self.labels, self.registers, own = [], {}, {}, {}  # own: names of the innermost braces -> one that is unique
        lines = (re.sub(r"//.*", "", line).strip() for line in body.splitlines())
        kept = " ".join(line for line in lines if not re.match(r"\.(loc|file|pragma)\b", line))
        for statement in kept.replace("\t", " ").split(";"):
            statement = statement.lstrip("{} ").rstrip()
            while label := re.match(r"([$\w]+):[{} ]*", statement):
                self.labels[label[1]] = len(statements)
                statement = statement[label.end() :]
            if declared := re.fullmatch(r"\.reg \.(\w+) +(.*)", statement):
                self.declare(*declared.groups(), own)
            elif statement:
                statements.append(re.sub(r"(?<![%\w])\w+", lambda word: own.get(word[0], word[0]), statement) if own else statement)
        self.steps = [Step(statement, self) for statement in statements]

    def declare(self, kind, names, own):
        kind = TYPES[kind if kind == "pred" else f"b{kind.lstrip('bfus')}"]
        for name in map(str.strip, names.split(",")):
            stem, _, count = name.rstrip(">").partition("<")
            if not name.startswith("%"):
                own[stem] = stem = f"{stem}.{len(self.registers)}"
            self.registers |= {f"{stem}{k}": kind for k in range(int(count))} if count else {stem: kind}


class Step:
    """One instruction: ``run(launch, threads)``, or a jump to ``target``, or the end."""

    def __init__(self, text, code):
        self.text, self.registers = text, code.registers
        negated, self.guard, instruction = re.fullmatch(r"(?:@(!?)(%\w+) +)?(.*)", text).groups()
        self.negated = bool(negated)
        opcode, _, operands = instruction.partition(" ")
        name, *words = opcode.split(".")
        operands = re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s]+", operands)
        self.jumps, self.target = name in ("bra", "ret", "exit"), None
        try:
            if self.jumps:
                self.target = code.labels[operands[0]] if name == "bra" else None
            else:
                self.run = {"ld": self.load, "st": self.store, "mov": self.move}.get(name, self.compute)(name, words, operands)
        except (Unknown, KeyError, ValueError) as error:
            raise Unknown(f"{text}: {error}") from error

    def compute(self, name, words, operands):
        function, write = RESULTS[name], self.writer(operands[0])
        if name == "cvt":
            modifiers, kinds = words, [words[-1]] * (len(operands) - 1)
        else:
            modifiers = words[:-1]
            kinds = operand_types(name, modifiers, words[-1], len(operands) - 1)
        reads = [self.reader(operand, kind) for operand, kind in zip(operands[1:], kinds, strict=True)]

        def run(launch, threads):
            write(launch, threads, function(modifiers, *[read(launch, threads) for read in reads]))

        return run

    def move(self, name, words, operands):
        """Words of a vector, the lowest first, and the register that has them all are moved into each other."""
        (kind,), (target, source) = words, operands
        targets, sources = parts(target), parts(source)
        if len(targets) == len(sources) == 1:
            write, read = self.writer(target), self.reader(source, kind)
            return lambda launch, threads: write(launch, threads, read(launch, threads))
        bits = int(kind[1:]) // (len(targets) * len(sources))
        reads = [self.reader(part, f"b{bits if len(sources) > 1 else kind[1:]}") for part in sources]
        writes = [self.writer(part) for part in targets]

        def run(launch, threads):
            if len(sources) == 1:
                whole = reads[0](launch, threads)
                for k, write in enumerate(writes):
                    write(launch, threads, (whole >> bits * k).astype(f"u{bits // 8}"))
            else:
                words = [read(launch, threads).astype(TYPES[kind]) << bits * k for k, read in enumerate(reads)]
                writes[0](launch, threads, np.bitwise_or.reduce(np.broadcast_arrays(*words)))

        return run

    def load(self, name, words, operands):
        kind, count = self.access(words)
        writes, at = [self.writer(part) for part in parts(operands[0])], self.address(operands[1])

        def run(launch, threads):
            values = launch.memory.load(at(launch, threads), kind.itemsize, count, launch.ids[threads])
            for write, value in zip(writes, values, strict=True):
                write(launch, threads, value.view(kind))

        return run

    def store(self, name, words, operands):
        kind, count = self.access(words)
        reads, at = [self.reader(part, f"b{8 * kind.itemsize}") for part in parts(operands[1])], self.address(operands[0])
        assert len(reads) == count

        def run(launch, threads):
            launch.memory.store(at(launch, threads), [read(launch, threads) for read in reads], launch.ids[threads])

        return run

    @staticmethod
    def access(words):
        """-> the type of one value, how many."""
        *modifiers, kind = words
        vector = next((word for word in modifiers if re.fullmatch(r"v[248]", word)), "v1")
        if not {*modifiers} <= SPACES | {vector}:
            unknown(f"one of {modifiers}")
        return TYPES[kind], int(vector[1:])

    def address(self, text):
        """[register or parameter + offset]"""
        base, offset = re.fullmatch(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\w+))?\s*\]", text).groups()
        read, offset = self.reader(base, "s64"), int(offset or "0", 0)
        return lambda launch, threads: np.broadcast_to(read(launch, threads) + offset, launch.ids[threads].shape)

    def reader(self, text, kind):
        """-> (launch, threads) -> the operand's values as ``kind``: one for each thread, or one for all."""
        kind = TYPES[kind]
        if text in self.registers:
            held = self.registers[text]
            if held == kind or held.itemsize == kind.itemsize and TYPES["pred"] not in (held, kind):
                return lambda launch, threads: launch.values[text][threads].view(kind)
            if TYPES["pred"] in (held, kind) or held.itemsize < kind.itemsize:
                unknown(f"{text} as {kind}")
            return lambda launch, threads: launch.values[text][threads].astype(f"u{kind.itemsize}").view(kind)
        if text.startswith("%"):
            return lambda launch, threads: launch.special(text)[threads].astype(kind)
        if re.fullmatch(r"0[fF][0-9A-Fa-f]{8}", text):
            return constant(np.array([int(text[2:], 16)], "u4").view(kind))
        if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)U?", text):
            value = int(text.rstrip("U"), 0)
            bits = np.array([value % 2 ** (8 * kind.itemsize)], f"u{kind.itemsize}")
            return constant(bits != 0 if kind == TYPES["pred"] else bits.view(kind))
        return lambda launch, threads: np.array([launch.where[text]]).view(kind)

    def writer(self, text):
        """-> (launch, threads, values): into a register, extended to its width by their sign where they have one."""
        if text == "_":
            return lambda launch, threads, values: None
        held = self.registers[text]

        def write(launch, threads, values):
            if values.dtype != held and TYPES["pred"] not in (values.dtype, held):
                kind = f"{'i' if values.dtype.kind == 'i' else 'u'}{held.itemsize}"
                if values.itemsize > held.itemsize:
                    unknown(f"{values.dtype} into {text}")
                values = (values if values.itemsize == held.itemsize else values.astype(kind)).view(held)
            launch.values[text][threads] = values

        return write


def constant(value):
    return lambda launch, threads: value


def parts(text):
    return [part.strip() for part in text.strip("{}").split(",")]


class Launch:
    def __init__(self, code, memory, blocks, threads, where):
        self.code, self.memory, self.where = code, memory, where
        self.blocks, self.threads = blocks, threads
        self.ids = np.arange(blocks * threads)
        anything = np.full(len(self.ids), 0xABABABABABABABAB, np.uint64)  # until it is written
        self.values = {name: anything.astype(kind) for name, kind in code.registers.items()}

    def special(self, name):
        known = {"%tid.x": self.ids % self.threads, "%ctaid.x": self.ids // self.threads}
        known |= {"%ntid.x": np.full_like(self.ids, self.threads), "%nctaid.x": np.full_like(self.ids, self.blocks)}
        return known[name] if name in known else unknown(name)

    def run(self):
        steps, targets = self.code.steps, {*self.code.labels.values()}
        place = np.zeros(len(self.ids), np.int64)
        for _ in range(MOST):
            at = place.min()
            if at == len(steps):
                return
            here = np.flatnonzero(place == at)
            some = ALL if len(here) == len(place) else here
            while True:  # up to where threads part, or where others may be
                step = steps[at]
                at += 1
                threads = self.passed(step, some, here) if step.guard else some
                place[here] = at
                if step.jumps:
                    place[threads] = len(steps) if step.target is None else step.target
                    break
                if threads is ALL or len(threads):
                    try:
                        step.run(self, threads)
                    except Exception as error:
                        raise type(error)(f"{step.text}: {error}") from error
                if at in targets:
                    break
        raise AssertionError("threads that come to no end")

    def passed(self, step, some, here):
        """The threads that the guard lets pass."""
        go = self.values[step.guard][some] ^ step.negated
        return ALL if some is ALL and go.all() else here[go]
