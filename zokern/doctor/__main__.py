"""python -m zokern.doctor: zokern doctor in plain lines, with Python's own parser of options."""

import argparse
import json
from collections.abc import Sequence

from . import as_json, examine, lines, verdict


def main(given: Sequence[str] | None = None) -> int:
    """-> the exit code: 0 healthy, 1 a fault was found."""
    parser = argparse.ArgumentParser("zokern doctor", description="Look at what is installed, and test the kernels that run here.")
    parser.add_argument("--no-speed", action="store_true", help="Leave out the speed check.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    options = parser.parse_args(given)
    if options.json:
        seen = examine(not options.no_speed)
        print(json.dumps(as_json(seen), indent=1))
    else:
        seen = examine(not options.no_speed, lambda section: print(*lines(section), sep="\n", flush=True))
        print(verdict(seen))
    return int(any(section.faults for section in seen))


if __name__ == "__main__":
    raise SystemExit(main())
