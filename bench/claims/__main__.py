"""python -m bench.claims: the measured figures of README and docs, written again from committed records.

Where a passage is there but for its figures, the records' figures are written into it. What is left is printed, line by line: passages
that are not there, figures that cannot be computed, numbers that look measured and are in no claim. --check writes nothing.
"""

import argparse
import sys

from ..record import ROOT
from . import check


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.claims", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args(argv)
    texts = check.pages()
    if not arguments.check:
        for problem in check.problems(texts):
            print(problem)
        for page, text in texts.items():
            texts[page] = check.renewed(page, text)
            if texts[page] != text:
                (ROOT / page).write_text(texts[page])
                print(f"{page}: written")
    left = check.problems(texts)
    print(*left, sep="\n", end="\n" if left else "")
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main())
