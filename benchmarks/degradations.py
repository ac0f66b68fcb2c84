"""What published degradations look like, on photos that the classifier did not see: diversity, colour, noise, spectra.

    python benchmarks/degradations.py HELD_OUT [--set NAME=FOLDER ...]

`results/degradations.json` holds what `refine-wrap analyze-degradation` writes, without the figures of each image. A
set is a folder of degraded versions of the same photos, 4 times smaller.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import write

from refine_wrap.analysis import analyze_degradation
from refine_wrap.analysis.words import classifier_line, diversity_lines, look_lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets = dict(each.split("=", 1) for each in options.set)
    result = analyze_degradation(sets, clean=options.photos, compare=["bsrgan", "realesrgan"])
    document = result.document()
    for each in document["sets"]:
        del each["each"]
    for line in (*diversity_lines(result), *look_lines(result)):
        print("  ".join(line))
    print(classifier_line(result))
    write("degradations", {"photos": options.photos.name, **document})


if __name__ == "__main__":
    main()
