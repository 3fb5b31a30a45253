"""The memory that a kernel may reach: what its launch was handed the address of. Every access is checked."""

import ctypes
from contextlib import contextmanager

import numpy as np
import torch

ADDRESS_OF = torch.Tensor.data_ptr
PAGE = 4096
# The address space of this process from its second page on, as arrays of each size: nothing is touched but what is indexed.
SPACE = {
    size: np.ctypeslib.as_array((kind * (((1 << 47) - PAGE) // size)).from_address(PAGE))
    for size, kind in ((1, ctypes.c_uint8), (2, ctypes.c_uint16), (4, ctypes.c_uint32), (8, ctypes.c_uint64))
}


class Memory:
    """Threads run in no order: so in one launch no byte is stored twice, and none that one thread stores is read by another."""

    def __init__(self):
        self.intervals, self.kept = set(), []

    def follow(self, patch):
        """Hand over every tensor that is asked for its address."""

        def data_ptr(tensor):
            self.hand(tensor)
            return ADDRESS_OF(tensor)

        patch.setattr(torch.Tensor, "data_ptr", data_ptr)

    def hand(self, tensor):
        """Kernels may reach what this tensor covers, and nothing beside it or between its rows."""
        size = run = tensor.element_size()
        strides = sorted((stride * size, count) for stride, count in zip(tensor.stride(), tensor.shape) if count > 1)
        while strides and strides[0][0] == run:  # dimensions without gaps
            run *= strides.pop(0)[1]
        starts = np.array([ADDRESS_OF(tensor)] if tensor.numel() else [], np.int64)
        for stride, count in strides:
            starts = (starts[:, None] + np.arange(count) * stride).ravel()
        self.intervals.update((start, start + run) for start in starts.tolist())
        self.kept.append(tensor)  # or its memory would become another's

    @contextmanager
    def launch(self, parameters, size):
        """One launch, with parameters at this address."""
        intervals = np.array(sorted({*self.intervals, (parameters, parameters + size)}))
        reach = np.maximum.accumulate(intervals[:, 1])  # of all so far
        apart = np.flatnonzero(np.append(True, intervals[1:, 0] > reach[:-1]))
        self.starts, self.ends = intervals[apart, 0], reach[np.append(apart[1:], len(intervals)) - 1]
        self.stored, self.loaded = [], []
        yield
        self.check_order()

    def check(self, address, size):
        if (bad := address % size != 0).any():
            raise AssertionError(f"an access of {size} bytes at {address[bad][0]:#x}, which is no multiple of them")
        at = np.searchsorted(self.starts, address, "right") - 1
        if (bad := (at < 0) | (address + size > self.ends[at])).any():
            raise AssertionError(f"an access of {size} bytes at {address[bad][0]:#x}, outside of all that was handed over")

    def load(self, address, size, count, threads):
        """``count`` unsigned integers of ``size`` bytes one after the other at each address."""
        self.check(address, size * count)
        self.loaded.append((address, size * count, threads))
        return [SPACE[size][(address - PAGE) // size + k] for k in range(count)]

    def store(self, address, values, threads):
        size = values[0].itemsize
        self.check(address, size * len(values))
        self.stored.append((address, size * len(values), threads))
        for k, value in enumerate(values):
            SPACE[size][(address - PAGE) // size + k] = value

    def check_order(self):
        stored, by = every_byte(self.stored)
        order = np.argsort(stored)
        stored, by = stored[order], by[order]
        if (twice := stored[1:] == stored[:-1]).any():
            raise AssertionError(f"the byte at {stored[1:][twice][0]:#x} is stored twice")
        if len(stored):
            near = [(a, n, t) for a, n, t in self.loaded if a.max() + n > stored[0] and a.min() <= stored[-1]]
            loaded, thread = every_byte(near)
            at = np.searchsorted(stored, loaded).clip(max=len(stored) - 1)
            if (foreign := (stored[at] == loaded) & (by[at] != thread)).any():
                raise AssertionError(f"the byte at {loaded[foreign][0]:#x} is stored by one thread and read by another")


def every_byte(accesses):
    """The address of each byte, and the thread that reaches it."""
    if not accesses:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    addresses = [(address[:, None] + np.arange(size)).ravel() for address, size, _ in accesses]
    return np.concatenate(addresses), np.concatenate([np.repeat(threads, size) for _, size, threads in accesses])
