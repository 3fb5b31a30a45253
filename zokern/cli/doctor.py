"""zokern doctor: as tables on a terminal, with what cures below each; elsewhere as lines."""

import json
import sys
from contextlib import nullcontext
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..doctor import FAULT, MISSING, OK, Section, as_json, examine, lines, verdict
from .looks import live
from .streams import tell, visible

STYLES = {OK: "green", MISSING: "yellow", FAULT: "bold red"}


def doctor(
    speed: Annotated[bool, typer.Option(help="Time a pass of noise beside a copy, for ten seconds at most.")] = True,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look at what is installed, test the kernels, time them.

    The kernels that run here are held to the golden bits of the noise, and their passes to those of the reference. No file is written.

    Exit codes: 0 healthy, 1 a fault was found: a wrong bit, a backend that does not load, a version outside its range.
    """
    if json_:
        seen = examine(speed)
        tell(json.dumps(as_json(seen), indent=1))
    elif live(sys.stdout):
        console = Console(force_terminal=True, markup=False, highlight=False, emoji=False)
        seen = examine(speed, lambda section: _print(console, section), lambda title: console.status(Text(title), refresh_per_second=2))
        console.print(Text(visible(verdict(seen)), STYLES[FAULT if any(section.faults for section in seen) else OK]))
    else:
        seen = examine(speed, lambda section: tell("\n".join(lines(section))), lambda title: nullcontext())
        tell(verdict(seen))
    raise typer.Exit(int(any(section.faults for section in seen)))


def _print(console: Console, section: Section) -> None:
    """A table; then cures line by line, which only the terminal breaks, so that they can be copied."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False, title=section.title, title_style="bold", title_justify="left")
    for finding in section.findings:
        state, name = Text(finding.state, STYLES[finding.state]), Text(visible(finding.name), "bold")
        table.add_row(state, name, Text(visible(finding.says), overflow="fold"))
    console.print(table)
    cures = [finding for finding in section.findings if finding.cure]
    for finding in cures:
        console.print(Text.assemble((visible(finding.name), "bold"), f": {visible(finding.cure)}"), soft_wrap=True)
    if cures:
        console.print()
