"""A checkpoint is copied, computed with and saved where there is no room for it: offload_worker.py CHECKPOINT FOLDER MIB."""

import re
import resource
import sys
from pathlib import Path

import torch
import transformers

from zokern import Layout, NoiseKey, ops
from zokern.finetune import offload


def allow(mib):
    """So much more memory that no file stands behind."""
    now = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (now + (int(mib) << 20), resource.getrlimit(resource.RLIMIT_DATA)[1]))


def generated(model):
    with torch.no_grad():
        return model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False)


def main(checkpoint, folder, mib):
    torch.set_num_threads(1)
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    small = transformers.LlamaConfig(vocab_size=8, hidden_size=32, num_hidden_layers=1)
    generated(transformers.AutoModelForCausalLM.from_config(small))
    offload.without_weights(transformers.AutoModelForCausalLM, small, torch.float32)  # all is imported now
    allow(mib)
    model = offload.without_weights(transformers.AutoModelForCausalLM, config, torch.float32)
    weights = offload.working_copy(checkpoint, model, Path(folder) / "weights.safetensors")
    with weights.writing():
        ops.add_noise_(Layout(model.named_parameters()), [(NoiseKey(7, 0), 0.01)])
    print(generated(model).tolist())
    offload.save(model, Path(folder) / "saved", "20MB")
    weights.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
