"""The telemetry of libraries, which Gleaner turns off."""

from __future__ import annotations

import os


def disable_telemetry() -> None:
    """Set the variables that libraries read while they load.

    onnxruntime 1.29 and later send reports on each session to their maker, with a persistent id in the home folder.
    Its function `disable_telemetry_events` comes too late: the first report is out by then.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
