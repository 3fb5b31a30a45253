"""README.md: its table, as ``python -m bench.plot`` makes it."""

from .. import plot
from .claim import on

claim = on("README.md")


@claim(f"{plot.BEGIN}\n{{table}}\n\n{{machine}}\n{plot.END}", "epyc-2cpu.jsonl")
def first_table(records):
    table, _, machine = plot.markdown(records).rpartition("\n\n")
    return {"table": table, "machine": machine}
