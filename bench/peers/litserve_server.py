"""A LitServe server: one worker, batches of up to 16 requests.

Its documentation recommends this.
"""

import os
import sys

import joblib
import litserve
import numpy as np


class Model(litserve.LitAPI):
    def setup(self, device):
        self.model = joblib.load(os.environ["MODEL"])

    def decode_request(self, request):
        return np.asarray(request["input"])

    def batch(self, inputs):
        self.cuts = np.cumsum([len(rows) for rows in inputs])[:-1]
        return np.concatenate(inputs)

    def predict(self, rows):
        return self.model.predict(rows)

    def unbatch(self, output):
        return np.split(output, self.cuts)

    def encode_response(self, output):
        return {"output": output.tolist()}


if __name__ == "__main__":
    api = Model(max_batch_size=16, batch_timeout=0.01)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False)
