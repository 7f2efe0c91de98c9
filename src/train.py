"""Train: `python src/train.py [DATA.csv] [options]` runs `gleaner train`."""

import sys
from pathlib import Path

from gleaner.launch import run

run(Path(__file__).resolve().parents[1], ["train", *sys.argv[1:]])
