"""Norms in the exported graph, as ONNX Runtime computes them, are as near float64 as torch's own."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is in the export environment only")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

import onnxruntime  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from export.networks.norms import GroupNorm, instance_norm  # noqa: E402
from export.to_onnx import OPSET  # noqa: E402

CHANNELS, GROUPS, SIDE = 16, 2, 64  # groups of eight channels on the half grid of `vit_b`: 2 million cells each
ROUNDING = 5e-6  # on values up to 10: some steps of float32


class InstanceNorm(nn.Module):
    def forward(self, x):
        return instance_norm(x)


def group_norm():
    norm = GroupNorm(GROUPS, CHANNELS)
    generator = torch.Generator().manual_seed(1)
    nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
    nn.init.uniform_(norm.bias, -1, 1, generator=generator)
    return norm


def cells(kind):
    x = torch.randn(2, CHANNELS, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    return functional.relu(x) if kind == "rectified" else x + 3 * torch.arange(CHANNELS)[:, None, None, None] / CHANNELS


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("kind", ["rectified", "shifted"])
@pytest.mark.parametrize("norm", [group_norm(), InstanceNorm()], ids=["group norm", "instance norm"])
def test_an_exported_norm_is_as_exact_as_torchs(norm, kind):
    x = cells(kind)
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(norm, (x,), dynamo=True, opset_version=OPSET, dynamic_shapes=dynamic, verbose=False)
    model = program.model_proto
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {model.graph.input[0].name: x[:1].numpy()})[0])
    with torch.inference_mode():
        own = norm(x[:1])
        if isinstance(norm, GroupNorm):
            exact = functional.group_norm(x[:1].double(), GROUPS, norm.weight.double(), norm.bias.double())
        else:
            exact = functional.instance_norm(x[:1].double())
    assert float(exact.abs().max()) > 3
    assert float((own - exact).abs().max()) < ROUNDING
    assert float((found - exact).abs().max()) < ROUNDING
