"""What runs in every worker of vLLM: ``--worker-extension-cls zokern.engines.vllm.worker.Worker``.

vLLM imports this module in each worker, before it loads a model.
"""

import base64
import json
from typing import Any

import torch

from ...errors import BadInput, first_line
from ..elements import places
from ..messages import Plan, Updates, terms_of
from ..shard import Shard


class Worker:
    """Methods that vLLM adds to its workers. A driver calls ``zokern`` by ``collective_rpc``."""

    def zokern(self, call: str) -> str:
        """A command and its arguments, [name, ...], as JSON. -> {"result": ...} or {"error": ...}, as JSON."""
        command, *arguments = json.loads(call)
        try:
            if command not in ("begin", "go", "checksums", "read", "applied"):
                raise BadInput(f"the engine's zokern knows no command {command!r}: install the driver's version there")
            return json.dumps({"result": getattr(_Commands(self), command)(*arguments)})
        except (BadInput, ValueError, TypeError) as error:
            return json.dumps({"error": str(error)})
        except torch.OutOfMemoryError as error:
            cure = "start it with a smaller gpu_memory_utilization, or keep theta in the dtype of its weights (copied-own)"
            return json.dumps({"error": f"no memory is left for theta beside the engine's weights ({first_line(error)}): {cure}"})


class _Commands:
    """What a worker can be asked to do; ``self.worker`` holds the shard."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker

    @property
    def shard(self) -> Shard:
        shard = getattr(self.worker, "_zokern", None)
        if shard is None:
            raise BadInput("the engine has not been told what is trained: call begin first")
        found: Shard = shard
        return found

    def begin(self, plan: dict[str, Any]) -> list[Any]:
        """-> [how many passes theta has had, the pieces that this worker holds, each with the dtype that the model has it in]."""
        told = Plan.of(plan)
        earlier: Shard | None = getattr(self.worker, "_zokern", None)
        if earlier is None or earlier.plan != told:
            if earlier and earlier.applied:
                raise BadInput(f"the engine's weights have had {earlier.applied} updates of an earlier run: start it again")
            if earlier:
                earlier.go(Updates(0, []), [])  # it may have been left at a point
            check(self.worker.vllm_config)
            model = self.worker.get_model()
            self.worker._zokern = Shard(told, places(model, [(t.name, t.shape) for t in told.tensors]))
        pieces = [[*piece, str(tensor.dtype).removeprefix("torch.")] for piece, tensor in self.shard.held]
        return [self.shard.applied, pieces]

    def applied(self) -> int:
        """-> how many passes theta has had."""
        shard = getattr(self.worker, "_zokern", None)
        return shard.applied if shard else 0

    def go(self, updates: list[Any], terms: list[Any]) -> int:
        self.shard.go(Updates.of(updates), terms_of(terms))
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # so that its time is not taken for that of what follows
        return self.shard.applied

    def checksums(self) -> list[int]:
        return self.shard.checksums()

    def read(self, rank: int, piece: int, begin: int, end: int) -> str:
        """-> the bytes of elements, in base64; of other workers nothing."""
        if self.worker.rank != rank:
            return ""
        return base64.b64encode(self.shard.read(piece, begin, end).contiguous().view(torch.uint8).numpy().tobytes()).decode()


def check(config: Any) -> None:
    """Refuse engines whose weights are not those of the checkpoint."""
    if getattr(config.model_config, "quantization", None):
        raise BadInput(f"quantization={config.model_config.quantization!r}: noise is of float weights: start the engine without it")
    if getattr(config, "lora_config", None):
        raise BadInput("enable_lora: the engine's adapters would be left alone: start it without, on a model into which they are merged")
    if getattr(config.parallel_config, "data_parallel_size", 1) > 1:
        raise BadInput("data_parallel_size > 1: calls reach one of the replicas alone: start an engine for each")
    if getattr(config.model_config, "use_mla", False):
        raise BadInput("the model has latent attention (MLA), of whose weights the engine computes others as it loads: take another model")


def keep_weights() -> None:
    """On a CPU vLLM packs weights of linear layers for oneDNN and keeps none that could be perturbed: let it compute with them as they
    are."""
    from vllm.model_executor.layers import linear, utils
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return

    def plain(layer: Any, remove_weight: bool = True) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    for module in (utils, linear):
        if hasattr(module, "dispatch_cpu_unquantized_gemm"):
            module.dispatch_cpu_unquantized_gemm = plain


keep_weights()
