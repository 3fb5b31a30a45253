"""docs/benchmarking.md: the published steps of others beside zokern's."""

from .. import plot, runs
from .claim import on

FILE = "peers-xeon-2cpu.jsonl"


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


def pair(records, peer, model, way) -> tuple[dict, dict]:
    """The published step and zokern's in bfloat16."""
    found = runs.pairs(records.of(op=peer, model=model, dtype="bf16"))
    return next((theirs, ours) for theirs, ours in found if runs.way(ours) == way)
