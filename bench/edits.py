"""The variants of suite ``variants``: small edits of the CUDA kernels' source, or of settings, and what each should do."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

ADD_NOISE, UPDATE, ELEMENTS, VECTOR = "add_noise_kernel.hpp", "update_kernel.hpp", "elements.hpp", "vector.hpp"
BASE, AGAIN = "unchanged", "unchanged, again"

# Every build, the unchanged one too, is without the kernels that are not timed, or compiling would take three times as long. Those that
# are left compile to the same code; a dispatch that came to another one would end the process.
NO_ADD_NOISE, NO_UPDATE = (f"static_cast<void (*)({name})>(nullptr)" for name in ("AddNoise", "Update"))
RARER = ("1, true, true", "0, true, true", "1, true, false", "0, true, false")
RULES = ("Momentum>(pass, state)", "Amsgrad>(pass, state)", "float, WindowedAdam>(pass)", "float, Sign>(pass)")
ONLY_TIMED = (
    ("device.hpp", "kernel_of(__half())", "decltype(kernel_of(float()))(nullptr)"),
    *((ADD_NOISE, f"add_noise_kernel<T, O, kSigns, {which}>", NO_ADD_NOISE) for which in RARER),
    *((ADD_NOISE, f"kernel_of<T, {out}>(pass)", NO_ADD_NOISE) for out in ("__nv_bfloat16", "__half")),
    *((UPDATE, f"kernel_of<T, {rule}", NO_UPDATE) for rule in RULES),
    (UPDATE, "update_kernel<T, S, R, false>", NO_UPDATE),
)


@dataclass(frozen=True)
class Variant:
    """Edits of the source, or of settings, and what should come of them.

    Attributes:
        edits: (file of csrc/cuda, old text, which occurs once, new text); or (module and name of a number, old value, new value).
        predicted: what should move, and why. Registers and instructions an element, by nvcc 13.0 for sm_90, are those of bf16 with one
            term and two, and fp32 with one and two; unchanged 32/44/32/40 and 25.8/48.9/24.5/47.9. Of signs they are 35 and 6.2, of Adam
            80 and 83.5 in bf16, 55 and 67.3 in fp32, 8 of which are usually jumped over. 32 registers leave room for 16 thread blocks of
            4 warps on a processor, 40 for 12, 48 for 10, 56 for 9, 64 for 8, 72 for 7, 80 for 6.
    """

    name: str
    edits: tuple[tuple[str, str, str], ...]
    predicted: str


ROWS, TILES = "#pragma unroll\n            for (int row = 0", "        for (uint32_t tile = 0;"
ROW, LOADED = "                float x[kTogether][n];\n", "load(x[v], from + at(v));\n"
LOAD, READ = "template <int n, class T>\n__device__ __forceinline__ void load(", "unpack(reinterpret_cast<const uint4*>(at)[i], "
STORED = "pack(reinterpret_cast<const float(&)[kVector<T>]>(x[i * kVector<T>]), T())"
HINTED = """__device__ __forceinline__ uint4 hinted(const uint4* at) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(__cvta_generic_to_global(at)) : "memory");
    return v;
}

"""
FIRST_ROW = """        constexpr bool kAhead = !kSigns && kTogether == 1;
        uint4 ahead[sizeof(T) * n / 16];
        const auto fetch = [&](const T* at) {
#pragma unroll
            for (uint32_t i = 0; i < sizeof ahead / 16; ++i) ahead[i] = reinterpret_cast<const uint4*>(at)[i];
        };
        if (kAhead && tiles) fetch(from);
"""
NEXT_ROW = """load(x[v], kAhead ? reinterpret_cast<const T*>(ahead) : from + at(v));
                if (kAhead && row + kTogether < kRows) fetch(from + at(kTogether));
                if (kAhead && row + kTogether == kRows && tile + 1 < tiles) fetch(from + kTile);
"""
NEXT_TILE = """                if (tile + 1 < tiles) asm volatile("prefetch.global.L2 [%0];" ::"l"(from + kTile + at(0)));
"""

PROGRAMS = {
    8192: "The last of 4 waves of blocks is long: 1 to 3 % slower with one term, more with two.",
    65536: "As fast within 1 %: a shorter last wave, but keys and spans are loaded for half as many elements.",
    262144: "One tile a block: what a block's beginning costs is bare; memory is then read in order, as a copy does.",
    16384: "Between those of 8192 and of 32768, the base's: less than 1 % slower.",
}
VARIANTS = (
    Variant(AGAIN, (), "Nothing: as far as it is from the base, so far is what this run cannot tell apart."),
    Variant(
        "next row in registers",
        ((ELEMENTS, TILES, FIRST_ROW + TILES), (ELEMENTS, LOADED, NEXT_ROW)),
        "36/62/48/56, 25.9/49.2/24.8/47.6: a load has a row's noise to arrive in, for fewer blocks: gains where warps wait for loads.",
    ),
    Variant(
        "next tile into L2",
        ((ELEMENTS, ROW, NEXT_TILE + ROW),),
        "32/44/32/40, 26.0/49.5/24.9/47.9, signs 32 and 6.4: loads wait a third as long, for an instruction a row: gains as that does.",
    ),
    Variant(
        "rows unrolled by 2",
        ((ELEMENTS, ROWS, ROWS.replace("unroll", "unroll 2")),),
        "32/42/32/40, 26.4/49.4/25.9/48.9: gains if warps wait for instructions (loops of 25 KB are 13), else loses what is added.",
    ),
    Variant(
        "rows not unrolled",
        ((ELEMENTS, ROWS, ROWS.replace("unroll", "unroll 1")),),
        "39/40/31/32, 27.1/50.1/27.8/50.8: the same with loops of 2 to 6 KB; fp32 with two terms has 16 blocks for 12.",
    ),
    Variant(
        "2 rows together",
        ((ADD_NOISE, "kTerms ? 1 : kTile", "kTerms ? 2 : kTile"),),
        "38/48/40/40, 25.8/49.1/24.5/47.5: two loads in flight a warp, of fewer warps: no gain unless loads are waited for.",
    ),
    Variant(
        "a tile together",
        ((ADD_NOISE, "!kSigns && kTerms ? 1 : kTile", "kTile"),),
        "54/48/48/56, 25.8/49.0/24.5/47.4: four or eight loads at once, 9 or 10 blocks: bf16 loses, fp32 may win by longer bursts.",
    ),
    Variant(
        "8 blocks, add_noise_",
        ((ADD_NOISE, "kTerms ? 4 : 0)", "kTerms ? 4 : 8)"),),
        "64/64/55/64, 25.7/49.2/24.4/47.6, signs 56 and 6.1: loads where a row begins, of signs all four: gains if 32 warps are enough.",
    ),
    Variant(
        "12 blocks, add_noise_",
        ((ADD_NOISE, "kTerms ? 4 : 0)", "kTerms ? 4 : kSigns ? 0 : 12)"),),
        "40/40/36/40, 25.8/49.6/24.5/47.6: bf16 with two terms has 12 blocks for 10: gains if it stalls; one term has 12 for 16.",
    ),
    Variant(
        "more blocks, adam",
        ((UPDATE, "kOne ? 0 : 4)", "kOne ? (sizeof(S) == 2 ? 7 : 10) : 4)"),),
        "Adam 72 and 84.9 in bf16, 40 and 68.5 in fp32: 7 blocks for 6, 12 for 9, more bytes in flight; bf16 is near the bound of issue.",
    ),
    Variant(
        "256 threads, tiles of 8192",
        (
            ("noise.hpp", "kThreads = 128", "kThreads = 256"),
            ("passes.hpp", "kTile = 4096", "kTile = 8192"),
            *((f"zokern.kernels.{module}.BLOCK", "4096", "8192") for module in ("spans", "cuda")),
        ),
        "48/40/32/64, 26.0/48.8/24.6/47.5: half as many, longer streams through memory; 40/48/64/32 warps for 64/40/64/48 tell more.",
    ),
    Variant(
        "streaming",
        ((VECTOR, READ, READ.replace("unpack(", "unpack(__ldcs(").replace("[i], ", " + i), ")),)
        + ((VECTOR, "reinterpret_cast<uint4*>(at)[i] = " + STORED, f"__stcs(reinterpret_cast<uint4*>(at) + i, {STORED})"),),
        "32/34/32/40, 25.7/48.9/24.5/47.9: what nobody reads again leaves L2 first; bf16 with two terms has 12 blocks for 10.",
    ),
    Variant(
        "256 bytes into L2, none into L1",
        ((VECTOR, LOAD, HINTED + LOAD), (VECTOR, READ, "unpack(hinted(reinterpret_cast<const uint4*>(at) + i), ")),
        "Registers and instructions as unchanged: DRAM is read in longer bursts; signs and fp32 gain if anything does.",
    ),
    *(Variant(f"{many} programs", (("zokern.kernels.spans.PROGRAMS", "32768", str(many)),), text) for many, text in PROGRAMS.items()),
)


def edited(variant: Variant, csrc: Path) -> tuple[set[str], list]:
    """Edits a copy of csrc. -> which files; (module, name, new value) of settings. ValueError: a text is not there once."""
    files, settings = set(), []
    for where, old, new in variant.edits:
        module, _, name = where.rpartition(".")
        if named := where.startswith("zokern."):
            settings.append((import_module(module), name, int(new)))
            text = str(getattr(*settings[-1][:2]))
        else:
            files.add(f"cuda/{where}")
            text = (csrc / "cuda" / where).read_text()
            (csrc / "cuda" / where).write_text(text.replace(old, new))
        if text.count(old) != 1 or named and text != old:
            raise ValueError(f"{variant.name}: {where} has {old!r} {text.count(old)} times, not once")
    return files, settings
