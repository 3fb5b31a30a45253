"""Numbers that look like a measurement and are none: the very passage, and why no record has them."""

import re
from dataclasses import dataclass
from functools import cached_property

from .claim import spaced


@dataclass(frozen=True)
class Exempt:
    page: str
    text: str
    reason: str

    @cached_property
    def pattern(self) -> re.Pattern:
        return re.compile(spaced(self.text))


EXPECTED = "an expectation, reckoned from bytes and counted instructions; the page says so"
EXEMPT = [
    Exempt("CHANGELOG.md", "exit code 2 with a line, or 141", "an exit code"),
    Exempt("docs/command_line.md", "| 141 | done, but nobody read", "an exit code"),
    Exempt("docs/optimizers/evolution_strategies.md", "models of 0.5 to 72 billion", "cited: Qiu et al. 2025"),
    Exempt("docs/rewards.md", "models of 0.5 to 72 billion", "cited: Qiu et al. 2025"),
    Exempt("docs/settings.md", "momentum 0.9 makes steps ten times as long", "a setting, and the sum of its powers"),
    Exempt("docs/settings.md", "0.3 of MeZO's for adapters", "a setting to begin a search from"),
    Exempt("docs/benchmarking.md", "the head start that it needs, up to 50 ms.", "a setting of bench/timing.py"),
    Exempt("docs/benchmarking.md", "`offload` (10 GB of disk)", "what the suite asks for, in round numbers"),
    Exempt(
        "docs/benchmarking.md",
        "of which it should reach 0.85 to 0.95 of what a GPU can. By the instructions above and a copy of 3.0 TB/s on an H100 and 4.3 on "
        "an H200, at 1.98 GHz: 0.95 and more with one term and, in fp32, with two; two terms in bf16 0.78 to 0.87 on an H100 and 0.54 to "
        "0.60 on an H200;",
        EXPECTED,
    ),
    Exempt("docs/benchmarking.md", "`host_s` over OPT-125M's tensors at most 45 microseconds", EXPECTED),
    Exempt(
        "docs/benchmarking.md",
        "the optimizer's part of a step 5.3 to 7 times cheaper than the published one's (`optimizer_speedup`); OPT-13B in bf16, 16 times "
        "400 tokens, 2.1 to 2.2 forwards (`step_in_forwards`) and at most 1 MiB over the memory of two forwards; OPT-125M as a graph at "
        "most 2.3 captured forwards;",
        EXPECTED,
    ),
    Exempt("docs/benchmarking.md", "Adam with states in the dtype of the weights at 0.95 and more of a copy of its tensors;", EXPECTED),
    Exempt("docs/benchmarking.md", "a model of 1.1e9 parameters whose weights lie in a file", "a setting of the suite"),
    Exempt("docs/benchmarking.md", "A call ends after 480 seconds:", "a setting of bench/gpu.py"),
    Exempt("docs/benchmarking.md", "a copy in float16 of 46 MB", "arithmetic: 2 bytes for each of MiniLM's weights, and its tokenizer"),
    Exempt("docs/benchmarking.md", "at least 200 steps a second on OPT-1.3B", EXPECTED),
    Exempt("docs/benchmarking.md", "144 in FZOO's of four members", "counted operations, held by python_tests/bench/test_peers.py"),
    Exempt("docs/versions.md", "with glibc 2.34 or later", "a version"),
    Exempt("docs/engines.md", "vLLM 0.28 to 0.32 are taken", "versions, of zokern/engines/vllm/versions.py"),
    Exempt("docs/engines.md", "30 to 40 kB an engine, about 40 MB from the driver in all", "arithmetic: 1,000 terms of 35 bytes"),
    Exempt("docs/processes.md", "7 billion weights in bfloat16 (P = 14 GB)", "arithmetic: 2 bytes a weight"),
    Exempt("docs/processes.md", "| data | 14 GB | 42 GB | 192 bytes |", "arithmetic: 2 and 2 + 4 bytes a weight; 8 * 8 * (2 + 1)"),
    Exempt("docs/processes.md", "| directions, q = 4 | 14 GB | 42 GB |", "arithmetic: 2 and 2 + 4 bytes a weight"),
    Exempt(
        "docs/processes.md",
        "| FSDP2 | 1.75 GB | 5.25 GB | 24.5 GB | | HSDP, 2 replicas of 4 shards | 3.5 GB | 10.5 GB | 10.5 GB | "
        "| tensor parallel | 1.75 GB | 5.25 GB | 7.5 GB | | 2-D, 2 shards of 4-fold tensor parallel | 1.75 GB | 5.25 GB | 6.7 GB | "
        "| offload | two parts; 14 GB on the host | not needed | 28 GB over PCIe |",
        "arithmetic: the formulas of the table above, with what the sentence before assumes",
    ),
    Exempt("docs/processes.md", "3 hidden tokens, 12,288 here", "arithmetic: 3 * 4,096"),
    Exempt("docs/noise_spec.md", "254 perturbation in a check before a run, 255 the draw", "the specification: numbers of purposes"),
    Exempt("docs/noise_spec.md", "and exponents are off by 112", "arithmetic: 127 - 15, the biases of float32 and float16"),
    Exempt(
        "docs/noise_spec.md",
        "|radius error| <= 1.3e-5 above 0.5, <= 6e-5 above 0.1, <= 2.7e-3 at 0; cos and sin within 8e-7, variance 1 - "
        "7e-8, fourth moment 3(1 - 4e-6), largest |z| 5.768",
        "arithmetic: properties of the polynomials above, the same on every machine",
    ),
    Exempt("docs/precision.md", "a weight of 0.02 has neighbors 2^-13 = 1.2e-4 apart", "arithmetic: the spacing of bfloat16"),
    Exempt("docs/precision.md", "a weight of 0.3 in bfloat16 has neighbors 2e-3 apart", "arithmetic: the spacing of bfloat16"),
    Exempt("docs/precision.md", "saved is in files of 1 GB", "a setting: the most that a shard holds"),
]
