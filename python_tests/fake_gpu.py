"""Two GPUs without memory, to see what the host asks of one: tensors on them are torch's FakeTensors, kernels are launched by the real
binding on the runtime of ptx/, which records them, and of torch.cuda streams, devices and graphs stand-ins are here."""

from contextlib import contextmanager
from functools import wraps

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import zokern
from zokern.kernels import cuda, location

aten = torch.ops.aten


class FakeGPUs:
    """
    Attributes:
        launches: (kernel, device, stream) of every launch, as of ptx.runtime.Runtime.
        capture: the Graph that is being captured, or None.
        fail: whether captures fail at their end.
        cleared: launches before each time that cuBLAS' workspaces were given up, outside a capture.
    """

    def __init__(self, runtime, patch):
        runtime.begin()
        runtime.executes = False
        self.runtime, self.capture, self.fail, self.watching = runtime, None, False, False
        self.streams, self.current = 2, [(0, 0), (1, 1)]  # (device, number) of the current stream of each
        self.addresses, self.pinned, self.cleared = {}, {}, []
        self._memory(patch)
        self._streams(patch)
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", self._clear, raising=False)
        patch.setattr(cuda, "_cuda", runtime)
        patch.setattr(cuda, "status", lambda: "available: fake")
        patch.setattr(zokern.kernels, "_default", lambda kind: cuda)

    @property
    def launches(self):
        return self.runtime.launches

    @contextmanager
    def tensors(self):
        """Inside, tensors on "cuda" are fake."""
        with Fake() as self.mode, Operations(self):
            yield

    @contextmanager
    def step(self):
        """Inside, what makes the host wait is refused."""
        self.watching = True
        yield
        self.watching = False

    def _clear(self):
        assert self.capture is None
        self.cleared.append(len(self.launches))

    def _memory(self, patch):
        address_of = torch.Tensor.data_ptr

        def data_ptr(tensor):
            if not isinstance(tensor, FakeTensor):
                return address_of(tensor)
            start = self.addresses.setdefault(tensor.untyped_storage()._cdata, len(self.addresses) + 1 << 32)
            return start + tensor.storage_offset() * tensor.element_size()

        patch.setattr(torch.Tensor, "data_ptr", data_ptr)
        patch.setattr(location, "FACTS", (data_ptr, *location.FACTS[1:]))
        patch.setattr(location, "_reader", lambda: location._by_attributes)
        for name, function in WITHOUT_A_GUARD.items():
            patch.setattr(torch.Tensor, name, for_fakes(function, getattr(torch.Tensor, name)))
        for name in ("item", "tolist", "__float__", "__int__", "__bool__", "__index__"):
            patch.setattr(torch.Tensor, name, for_fakes(waits, getattr(torch.Tensor, name)))
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: self._pin(tensor.clone()))
        for name in ("empty_like", "tensor"):
            patch.setattr(torch, name, self._pinning(getattr(torch, name)))

    def _pinning(self, factory):
        @wraps(factory)
        def make(*arguments, pin_memory=False, **named):
            made = factory(*arguments, **named)
            return self._pin(made) if pin_memory else made

        return make

    def _pin(self, tensor):
        self.pinned[id(tensor)] = tensor
        return tensor

    def _streams(self, patch):
        gpus = self

        class Stream:
            def __init__(self, device=None, number=None):
                self.device = torch.device("cuda", index_of(device, gpus.device))
                if number is None:
                    number, gpus.streams = gpus.streams, gpus.streams + 1
                self.cuda_stream = number

            def wait_stream(self, other):
                pass

        class Event:
            def record(self, stream):
                pass

            def query(self):
                return False

        class Graph:
            def capture_begin(self, *arguments, **named):
                self.place, self.launches = gpus.current[gpus.device], len(gpus.launches)
                gpus.capture = self

            def capture_end(self):
                gpus.capture, self.launches = None, gpus.launches[self.launches :]
                if gpus.fail:
                    raise RuntimeError("the capture failed")

            def replay(self):
                self.replays = getattr(self, "replays", 0) + 1

        def current_stream(device=None):
            return Stream(*gpus.current[index_of(device, gpus.device)])

        def set_stream(stream):
            gpus.current[stream.device.index] = stream.device.index, stream.cuda_stream
            gpus.exchange_device(stream.device.index)

        known = dict(is_available=lambda: True, current_device=lambda: gpus.device, synchronize=lambda *a: None, empty_cache=lambda: None)
        known |= dict(Stream=Stream, Event=Event, CUDAGraph=Graph, current_stream=current_stream, set_stream=set_stream)
        known |= dict(_exchange_device=gpus.exchange_device, _maybe_exchange_device=gpus.exchange_device)
        for name, value in known.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch.cuda.graph, "default_capture_stream", None)
        patch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
        patch.setattr(fake_tensor, "init_gpu_context", lambda *device: None, raising=False)

    @property
    def device(self):
        return self.runtime.library.fake_device()

    def exchange_device(self, device):
        before = self.device
        self.runtime.library.cudaSetDevice(device)
        return before


# Methods around which torch's own C++ puts a guard of devices, which it does not have for GPUs where there is no CUDA.
WITHOUT_A_GUARD = {
    "__invert__": torch.bitwise_not,
    "__getitem__": lambda tensor, at: aten.slice(tensor, 0, at.start, at.stop) if isinstance(at, slice) else tensor.select(0, at),
    "__setitem__": lambda tensor, at, value: aten.copy_(tensor.select(0, at), torch.as_tensor(value)),
    "copy_": aten.copy_,
}


def waits(tensor):
    raise AssertionError(f"a number is read from {tensor.device}, which waits")


def for_fakes(function, real):
    return lambda tensor, *arguments, **named: (function if isinstance(tensor, FakeTensor) else real)(tensor, *arguments, **named)


def index_of(device, current):
    device = getattr(device, "index", device)
    return current if device is None else device


class Fake(fake_tensor.FakeTensorMode):
    avoid_device_init = True  # though torch.cuda.is_available()


class Operations(TorchDispatchMode):
    """Makes the host's own operations, on tensors that are no FakeTensors, and has FakeTensorMode see to the others. In a step none
    makes the host wait for a GPU; in a capture there is also none that a graph could not repeat."""

    def __init__(self, gpus):
        super().__init__()
        self.gpus = gpus

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        named = named or {}
        given = [leaf for leaf in tree_leaves((arguments, named)) if isinstance(leaf, torch.Tensor)]
        devices = [torch.device(leaf).type for leaf in (named.get("device"),) if leaf is not None]
        if "cuda" not in devices and not any(isinstance(tensor, FakeTensor) for tensor in given):
            with fake_tensor.unset_fake_temporarily():
                return function(*arguments, **named)
        fake = lambda leaf: self.gpus.mode.from_tensor(leaf) if isinstance(leaf, torch.Tensor) else leaf  # noqa: E731
        made = function(*tree_map(fake, arguments), **tree_map(fake, named))
        if self.gpus.watching and function.overloadpacket is aten.div and given[0].is_cuda:
            assert len(given) == 2 and given[1].is_cuda, f"{function} by {arguments[1]}: a GPU multiplies by the reciprocal, a CPU divides"
        kinds = {tensor.device.type for tensor in [*given, *tree_leaves(made)] if isinstance(tensor, torch.Tensor)}
        if kinds == {"cpu", "cuda"} and (self.gpus.watching or self.gpus.capture):
            what = f"{function} of {[(tuple(t.shape), t.device.type) for t in given]}"
            assert not self.gpus.capture, f"{what} in a capture: a graph repeats the host's number, or reads memory that is gone"
            if function in (aten._to_copy.default, aten.copy_.default):
                to = given[0] if function is aten.copy_.default else made
                assert named.get("non_blocking") or True in arguments[2:], f"{what} waits"
                assert to.is_cuda or id(to) in self.gpus.pinned, f"{what} waits, because the host's memory is not pinned"
            else:
                assert not any(t.dim() for t in given if not t.is_cuda), f"{what} on two devices"
        return made
