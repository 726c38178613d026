"""Liveness of Triton: one inference of the ensemble, zeros in, within the pod. Exit status 1 when a model is dead.

Triton goes on calling itself live and ready when the process of a Python-backend model was killed; only an inference
tells. A server that is merely busy is alive: a full queue and a canary that ran out of time are no reason to kill it.
Runs on the Python of Triton's image, without any package.
"""

import json
import struct
import sys
import urllib.error
import urllib.request

SERVER = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
MODEL = "tags"
BYTES = {"FP32": 4, "FP16": 2, "INT32": 4, "INT64": 8, "BOOL": 1}
PATIENCE_S = 30
DEAD = (400, 404, 500)  # the model is gone, or its process is: INTERNAL is 500; a busy one says 503 or 504


def main() -> int:
    try:
        with urllib.request.urlopen(f"{SERVER}/v2/models/{MODEL}", timeout=PATIENCE_S) as answer:
            inputs = json.load(answer)["inputs"]
        urllib.request.urlopen(canary(inputs), timeout=PATIENCE_S).close()
    except urllib.error.HTTPError as error:
        print(f"the canary was answered {error.code}")
        return int(error.code in DEAD)
    except TimeoutError:
        print("busy: no answer in time")
        return 0
    except OSError as error:
        if isinstance(getattr(error, "reason", None), TimeoutError):
            print("busy: no answer in time")
            return 0
        print("the server does not answer")
        return 1
    return 0


def canary(inputs: list) -> urllib.request.Request:
    """Zeros for every input, batch 1, in Triton's binary form (binary tensor data extension)."""
    described, body = [], b""
    for tensor in inputs:
        shape = [1, *tensor["shape"][1:]]
        size = BYTES[tensor["datatype"]]
        for length in shape:
            size *= length
        described.append(
            {"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape,
             "parameters": {"binary_data_size": size}}
        )  # fmt: skip
        body += struct.pack(f"{size}x")
    timeout_us = PATIENCE_S * 1_000_000
    header = {"inputs": described, "parameters": {"binary_data_output": True, "timeout": timeout_us}}
    text = json.dumps(header).encode()
    return urllib.request.Request(
        f"{SERVER}/v2/models/{MODEL}/infer",
        data=text + body,
        headers={"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"},
    )


if __name__ == "__main__":
    sys.exit(main())
