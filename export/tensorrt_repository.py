"""Plans of one bundle as a Triton model repository: `tensorrt_plan` models and the same ensemble `tags`.

    DIRECTORY/
      bundle.json          of the bundle, so that one can see what is served
      sam_encoder/         config.pbtxt, 1/model.plan, 1/model.plan.json
      clip_text_embedder/  likewise
      fusion_decoder/      likewise
      tags/                config.pbtxt, 1/

The gateway reads the bundle itself (TAGS_BUNDLE_DIR) and compares the ONNX digests with those in each config.pbtxt.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from contract.bundle import FILE_NAME, Bundle, onnx_file
from contract.tensors import ENSEMBLE, NETWORKS, network_specs
from export.tensorrt_plan import FACTS_FILE, PLAN_FILE, Server, check_plan, read_facts
from export.triton_config import Serving, plan_configs


def write_plan_repository(bundle: Bundle, plans: Path, out: Path, *, server: Server, serving: Serving) -> None:
    """Raises: PlanRefused before anything is written: a plan is missing or does not match the server or the bundle.

    Args: plans: one folder per network with its plan.
    """
    digests = {network: bundle.files[onnx_file(network)] for network in NETWORKS}
    for network, digest in digests.items():
        facts = read_facts(plans / network)
        check_plan(facts, server, bundle=bundle.identity, onnx_sha256=digest, most_batch=serving.most_batch)
    for network in NETWORKS:
        folder = out / network / "1"
        folder.mkdir(parents=True, exist_ok=True)
        for name in (PLAN_FILE, FACTS_FILE):
            shutil.copyfile(plans / network / name, folder / name)
    specs = network_specs(bundle.sizes)
    for model, text in plan_configs(specs, bundle=bundle.identity, digests=digests, serving=serving).items():
        (out / model).mkdir(exist_ok=True)
        (out / model / "config.pbtxt").write_text(text)
    (out / ENSEMBLE / "1").mkdir(exist_ok=True)
    shutil.copyfile(bundle.directory / FILE_NAME, out / FILE_NAME)
