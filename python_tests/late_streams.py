"""Stand-ins for the streams of a GPU, to see what waits for what."""

from contextlib import contextmanager

import torch

from zokern.estimators import scratch, streamed


class Streams:
    """Of a GPU on the CPU: what the side stream makes is made as late as it may be, when it is waited for.

    Attributes:
        log: what was done, in order, since ``told``.
    """

    def __init__(self, patch):
        stand_in, self.names, self.log, self.queue, self.current = self, {}, [], [], "main"

        class Stream:
            def __init__(self, device, name="side"):
                self.name = name

            def wait_stream(self, other):
                stand_in.log.append(f"{self.name} waits for {other.name}")
                if self.name == "main":
                    while stand_in.queue:
                        stand_in.queue.pop(0)()

        @contextmanager
        def within(stream):
            self.current = stream.name
            yield
            self.current = "main"

        fill = scratch.Scratch.fill

        def later(scratch, filled, made):
            name, slot = self.names.get(id(filled[-1][0].params[-1])), self.slot_of(scratch, made[0])
            self.log.append(f"{self.current} makes {name} in {slot}")
            if self.current == "main":
                fill(scratch, filled, made)
            else:
                self.queue.append(lambda: fill(scratch, filled, made))

        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "current_stream", lambda device: Stream(device, "main"))
        patch.setattr(torch.cuda, "stream", within)
        patch.setattr(scratch.Scratch, "fill", later)
        patch.setattr(streamed, "WITH_STREAMS", "cpu")

    def slot_of(self, scratch, made):
        return next(slot for (slot, _), buffer in scratch.buffers.items() if buffer.data_ptr() == made[1][0].untyped_storage().data_ptr())

    def of(self, model):
        """The model, whose layers are logged by their number."""
        for name, module in model.named_modules():
            if params := list(module.parameters(recurse=False)):
                name = name.rpartition(".")[2]
                self.names |= {id(p): name for p in params}
                module.register_forward_hook(lambda *_, name=name: self.log.append(f"{name} computes"))
        return model

    def told(self):
        log, self.log = self.log, []
        return log
