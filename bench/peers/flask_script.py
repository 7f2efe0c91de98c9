"""The usual script: Flask, pandas and a joblib file, behind gunicorn."""

import os

import joblib
import pandas as pd
from flask import Flask, jsonify, request

app = Flask(__name__)
model = joblib.load(os.environ["MODEL"])


@app.post("/predict")
def predict():
    rows = request.get_json()
    frame = pd.DataFrame(rows if isinstance(rows, list) else [rows])
    return jsonify(prediction=model.predict(frame[list(model.feature_names_in_)]).tolist())
