"""README.md and docs/benchmarking.md: the published steps of others beside zokern's."""

from .. import plot, runs
from ..smollm2 import NAME
from .claim import on, rows

FILE = "peers-xeon-2cpu.jsonl"
SHOWN = {  # of README's table: published step -> model, what the row says
    "MeZO": NAME,
    "ZO-LLM, Adam": NAME,
    "LOZO": NAME,
    "MeZO-SVRG, minibatch": "OPT-12M",
    "FZOO": "OPT-12M",
    "ES at scale": "OPT-12M",
}


@on("docs/benchmarking.md")("<!-- peers: begin -->\n{table}\n\n{machine}\n<!-- peers: end -->", FILE)
def all_of_them(records):
    table, _, machine = plot.peers(records).rpartition("\n\n")
    return {"table": table, "machine": machine}


@on("docs/benchmarking.md")(
    "in place in bfloat16, zokern's FZOO ends {fzoo:.2g} eps off and the published one {their_fzoo:.2g}, evolution strategies {es:.1f} and "
    "{their_es:.2f}: their code",
    FILE,
)
def in_place(records):
    """What zokern's step is worse in."""

    def off(peer):
        return [r["drift_over_eps"] for r in pair(records, peer, "OPT-12M", "in place")]

    (their_fzoo, fzoo), (their_es, es) = off("FZOO"), off("ES at scale")
    assert fzoo > their_fzoo and es > their_es
    return {"fzoo": fzoo, "their_fzoo": their_fzoo, "es": es, "their_es": their_es}


@on("README.md")(
    "| published step | model | its own time, ms | here | memory over a forward, MB | here | weights after 200 steps of lr 0 | here |\n"
    "|---|---|---|---|---|---|---|---|\n{table}",
    FILE,
)
def table(records):
    return {"table": rows(row(*pair(records, peer, model, "streamed")) for peer, model in SHOWN.items())}


def pair(records, peer, model, way) -> tuple[dict, dict]:
    """The published step and zokern's in bfloat16."""
    found = runs.pairs(records.of(op=peer, model=model, dtype="bf16"))
    return next((theirs, ours) for theirs, ours in found if runs.way(ours) == way)


def row(theirs, ours) -> list[str]:
    mine = ours["candidate"].removeprefix("zokern.").removesuffix(", streamed")
    told = [theirs["op"] if ours["op"] != "LOZO" else f"LOZO; here {mine}", ours["model"]]
    for field, unit in (("optimizer_s", 1e3), ("peak_over_forward_bytes", 1e-6)):
        told += [runs.short(r[field] * unit) for r in (theirs, ours)]
    return [*told, f"off by {runs.short(theirs['drift_over_eps'])} eps", "the same" if ours["drift_over_eps"] == 0 else "not the same"]
