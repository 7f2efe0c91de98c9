"""Ask for a prediction: `python check_api.py --data '{...}' --port 5001` runs `gleaner check`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "src"))

from gleaner.launch import run  # noqa: E402  # the path is set above

run(ROOT, ["check", *sys.argv[1:]])
