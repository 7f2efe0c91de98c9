"""A person's look into MLflow's database, from a process without Gleaner's code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from projects import ROUTE

_CODE = """
import json, logging, sys, tempfile, warnings
warnings.simplefilter("ignore")
import mlflow, pandas
logging.disable(logging.CRITICAL)
uri, route = sys.argv[1], json.loads(sys.argv[2])
mlflow.set_tracking_uri(uri)
client = mlflow.MlflowClient()
experiment = client.get_experiment_by_name("made")
plots = {}
for run in client.search_runs([experiment.experiment_id]):
    if "candidate" in run.data.tags:
        with tempfile.TemporaryDirectory() as folder:
            client.download_artifacts(run.info.run_id, "plots", folder)
        plots[run.info.run_id] = sorted(file.path for file in client.list_artifacts(run.info.run_id, "plots"))
with tempfile.TemporaryDirectory() as folder:
    model = mlflow.pyfunc.load_model("models:/made@champion", dst_path=folder)
prediction = model.predict(pandas.DataFrame([route]).astype(float))["prediction"].tolist()
assert not [name for name in sys.modules if name.startswith("gleaner.training.t")]
print(json.dumps({"location": experiment.artifact_location, "plots": plots, "prediction": prediction}))
"""


def look_into(folder: Path, uri: str = "") -> dict[str, Any]:
    """Return each candidate's plots, and the champion's prediction for ROUTE."""
    command = [sys.executable, "-c", _CODE, uri or f"sqlite:///{folder / '.gleaner' / 'mlflow.db'}", json.dumps(ROUTE)]
    # MLflow keeps the addresses that another test has set in the environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout)
