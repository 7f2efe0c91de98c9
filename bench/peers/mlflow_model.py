"""An MLflow model with a signature, as MLflow's documentation recommends: MODEL.joblib FOLDER."""

import sys

import joblib
import mlflow
import pandas as pd

model = joblib.load(sys.argv[1])
example = pd.DataFrame({name: [1.0] for name in model.feature_names_in_})
mlflow.sklearn.save_model(
    model,
    sys.argv[2],
    signature=mlflow.models.infer_signature(example, model.predict(example)),
    pip_requirements=["scikit-learn"],
    skops_trusted_types=["sklearn.tree._tree.Tree"],
)
