"""Serve predictions: `python src/predict.py [options]` runs `gleaner serve`."""

import sys
from pathlib import Path

from gleaner.launch import run

run(Path(__file__).resolve().parents[1], ["serve", *sys.argv[1:]])
