"""Triton Python backend: one ONNX file on ONNX Runtime. Copied beside `model.onnx` as `model.py` by the export.

Self-contained: it runs inside the server's own environment (numpy < 2), where nothing of ours is installed. Names
come from the model's configuration, the thread count from its parameter `threads`. Error texts carry no values.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Triton creates one per instance and calls it from one thread."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["threads"]["string_value"])
        # Three models share the cores: a thread that waits by spinning takes time from the one that works.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        """Answer the requests that the dynamic batcher put together, in one run; one response each, in order."""
        try:
            answers = self.run([self.feeds(request) for request in requests])
        except Exception as error:  # outermost: whatever it is, each caller gets an error and the server lives on
            refusal = pb_utils.TritonError("inference failed: " + type(error).__name__)
            return [pb_utils.InferenceResponse(error=refusal) for _ in requests]
        return [self.response(answer) for answer in answers]

    def feeds(self, request):
        return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}

    def run(self, batches):
        """Feeds per request to outputs per request: joined along the batch axis, run once, split again."""
        joined = {name: np.concatenate([feeds[name] for feeds in batches]) for name in self.inputs}
        ends = np.cumsum([len(feeds[self.inputs[0]]) for feeds in batches])[:-1]
        split = [np.split(output, ends) for output in self.session.run(self.outputs, joined)]
        return list(zip(*split, strict=True))

    def response(self, answer):
        tensors = [pb_utils.Tensor(name, array) for name, array in zip(self.outputs, answer, strict=True)]
        return pb_utils.InferenceResponse(output_tensors=tensors)
