"""The generated config.pbtxt, read back by Triton's own protobuf definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from contract.sizes import CONFIGURATIONS, SMALL
from contract.tensors import ENSEMBLE, FUSION_DECODER, NETWORKS, SAM_ENCODER, TensorSpec, network_specs
from export.pbtxt import Symbol, pbtxt
from export.triton_config import MAX_BATCH, EnsembleModel, NetworkModel, Queue, Serving, configs, plan_configs

SPECS = network_specs(SMALL)
DIGESTS = {name: f"digest of {name}" for name in NETWORKS}


def parsed(text):
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def small_configs():
    texts = configs(SPECS, bundle="small 1.2.3", digests=DIGESTS, threads=3)
    return {name: parsed(text) for name, text in texts.items()}


@pytest.mark.parametrize("sizes", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_every_model_states_the_contracts_names_dtypes_and_shapes(sizes):
    types = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int32": "TYPE_INT32"}
    specs = network_specs(sizes)
    for name, text in configs(specs, bundle="b 1", digests=DIGESTS, threads=2).items():
        config, spec = parsed(text), specs[name]
        assert config.name == name
        for found, expected in ((config.input, spec.inputs), (config.output, spec.outputs)):
            assert [
                (tensor.name, model_config_pb2.DataType.Name(tensor.data_type), tuple(tensor.dims)) for tensor in found
            ] == [(tensor.name, types[tensor.dtype], tensor.shape) for tensor in expected]


def test_the_image_has_no_batch_axis_in_its_dims_but_the_model_batches_to_four():
    encoder = small_configs()[SAM_ENCODER]
    assert list(encoder.input[0].dims) == [1, 64, 64, 64]
    assert encoder.max_batch_size == 4


def test_networks_run_on_the_python_backend_on_the_cpu_with_the_threads_asked_for():
    for name in NETWORKS:
        config = small_configs()[name]
        assert config.backend == "python"
        (group,) = config.instance_group
        assert (group.count, group.kind) == (1, model_config_pb2.ModelInstanceGroup.KIND_CPU)
        assert config.parameters["threads"].string_value == "3"


def test_a_client_can_see_which_bundle_and_weights_a_server_holds():
    found = small_configs()
    assert {config.parameters["bundle"].string_value for config in found.values()} == {"small 1.2.3"}
    assert found[FUSION_DECODER].parameters["onnx_sha256"].string_value == "digest of fusion_decoder"


def test_a_full_queue_and_a_long_wait_are_refused():
    batching = small_configs()[SAM_ENCODER].dynamic_batching
    assert list(batching.preferred_batch_size) == [2, 4]
    policy = batching.default_queue_policy
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
    assert policy.max_queue_size == 16
    assert policy.default_timeout_microseconds == 30_000_000


def test_warm_up_gives_zeros_for_every_input():
    for name in NETWORKS:
        (warmup,) = small_configs()[name].model_warmup
        assert warmup.batch_size == 1
        assert {key: tuple(value.dims) for key, value in warmup.inputs.items()} == {
            tensor.name: tensor.shape for tensor in SPECS[name].inputs
        }
        assert all(value.zero_data for value in warmup.inputs.values())


def test_the_response_cache_stays_off_for_patient_tensors():
    assert not any(config.response_cache.enable for config in small_configs().values())


def test_the_ensemble_runs_encoder_text_and_decoder_and_every_map_joins_equal_names():
    config = small_configs()[ENSEMBLE]
    assert config.platform == "ensemble"
    steps = config.ensemble_scheduling.step
    assert [step.model_name for step in steps] == list(NETWORKS)
    for step in steps:
        spec = SPECS[step.model_name]
        assert dict(step.input_map) == {tensor.name: tensor.name for tensor in spec.inputs}
        assert dict(step.output_map) == {tensor.name: tensor.name for tensor in spec.outputs}


def test_an_ensemble_whose_decoder_comes_first_is_refused():
    steps = tuple(SPECS[name] for name in reversed(NETWORKS))
    with pytest.raises(ValueError, match=r"fusion_decoder needs .*feat_0"):
        EnsembleModel(SPECS[ENSEMBLE], steps, "b 1")


def test_an_ensemble_whose_tensor_changes_shape_between_steps_is_refused():
    other = replace(SMALL, neck=32)
    steps = (*(SPECS[name] for name in NETWORKS[:2]), network_specs(other)[FUSION_DECODER])
    with pytest.raises(ValueError, match="nothing before it gives"):
        EnsembleModel(SPECS[ENSEMBLE], steps, "b 1")


@pytest.mark.parametrize(
    "tensor",
    [TensorSpec("image", "float64", (1,)), TensorSpec("image", "float32", ()), TensorSpec("image", "float32", (-1,))],
    ids=["unknown dtype", "no axis", "dynamic axis"],
)
def test_a_tensor_that_triton_cannot_hold_is_refused(tensor):
    with pytest.raises(ValueError, match="cannot be written"):
        NetworkModel(replace(SPECS[SAM_ENCODER], inputs=(tensor,)), "b 1", "0")


def test_an_unknown_network_or_no_thread_is_refused():
    with pytest.raises(ValueError, match="none of"):
        NetworkModel(SPECS[ENSEMBLE], "b 1", "0")
    with pytest.raises(ValueError, match="at least one thread"):
        NetworkModel(SPECS[SAM_ENCODER], "b 1", "0", threads=0)


@pytest.mark.parametrize(
    "wrong",
    [{"preferred_batches": (MAX_BATCH + 1,)}, {"max_waiting": 0}, {"timeout_us": 10}, {"max_delay_us": -1}],
    ids=str,
)
def test_a_queue_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match=r"preferred|queue"):
        Queue(**wrong)


def test_text_is_escaped_and_enumerations_are_bare():
    text = pbtxt({"name": 'a "b"\n', "kind": Symbol("KIND_CPU"), "on": True, "dims": (1, 2), "part": [{"x": 1}] * 2})
    assert text.splitlines() == [
        'name: "a \\"b\\"\\n"', "kind: KIND_CPU", "on: true", "dims: [1, 2]",
        "part {", "  x: 1", "}", "part {", "  x: 1", "}",
    ]  # fmt: skip


def plans(**serving):
    texts = plan_configs(SPECS, bundle="small 1.2.3", digests=DIGESTS, serving=Serving(**serving))
    return {name: parsed(text) for name, text in texts.items()}


def test_a_plan_is_served_by_the_tensorrt_backend_on_the_gpu_with_limits_and_warm_up():
    for name in NETWORKS:
        config = plans(instances=2, most_batch=3)[name]
        assert (config.platform, config.default_model_filename) == ("tensorrt_plan", "model.plan")
        assert config.max_batch_size == 3
        (group,) = config.instance_group
        assert (group.count, group.kind) == (2, model_config_pb2.ModelInstanceGroup.KIND_GPU)
        assert [(item.name, item.count) for item in group.rate_limiter.resources] == [("run", 1)]
        assert [warmup.batch_size for warmup in config.model_warmup] == [1, 3]
        assert config.optimization.cuda.graphs
        assert config.parameters["onnx_sha256"].string_value == f"digest of {name}"


def test_a_click_goes_before_a_batch_job_and_both_queues_are_bounded():
    batching = plans()[SAM_ENCODER].dynamic_batching
    assert (batching.priority_levels, batching.default_priority_level) == (2, 2)
    urgent, ordinary = batching.priority_queue_policy[1], batching.default_queue_policy
    assert (urgent.max_queue_size, ordinary.max_queue_size) == (16, 64)
    assert urgent.default_timeout_microseconds < ordinary.default_timeout_microseconds


def test_the_ensemble_of_plans_is_the_same_ensemble_with_a_limit_in_flight():
    found, ordinary = plans()[ENSEMBLE], small_configs()[ENSEMBLE]
    assert found.ensemble_scheduling.max_inflight_requests == 8
    found.ensemble_scheduling.ClearField("max_inflight_requests")
    assert found == ordinary


@pytest.mark.parametrize("wrong", [{"most_batch": MAX_BATCH + 1}, {"instances": 0}, {"in_flight": 0}], ids=str)
def test_serving_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match=r"at least 1|largest batch"):
        Serving(**wrong)
