"""A BentoML service with one worker and adaptive batching.

Its documentation recommends this for throughput.
"""

import os

import bentoml
import joblib
import numpy as np


@bentoml.service(workers=1)
class Service:
    def __init__(self) -> None:
        self.model = joblib.load(os.environ["MODEL"])

    # One batch holds the rows of many requests, and a request of 10,000 rows stays whole.
    @bentoml.api(batchable=True, max_batch_size=10_000)
    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.model.predict(rows)
