"""Both spellings of `engine_config`, and what makes no sense in either."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.deployments.engine_config import Autoscale, interpret, name_images, normalise
from app.deployments.quantities import memory_quantity, parse_cpus, parse_memory
from app.errors import Invalid

EMPTY = {"engine": {}, "enginelb": {}, "engineAux": {"images": {}}}


@pytest.mark.parametrize("nothing", [None, {}, {"engine": None}, {"engineAux": {"images": None}}])
def test_nothing_asked_for_is_every_section_empty(nothing: Any) -> None:
    assert normalise(nothing) == EMPTY


def test_the_flat_spelling_of_the_guide_becomes_the_nested_one() -> None:
    made = normalise(
        {
            "cpus": 0.25,
            "memory": "999MiB",
            "replica_count": 2,
            "lb_cpus": 1.5,
            "lb_memory": "1Gi",
            "gpus": 1,
            "deployment_label": "doc.ai/gpu:true",
            "arch": "arm",
            "replica_autoscale_min_max": {"maximum": 3, "minimum": 0},
            "autoscale_cpu_utilization": 75,
            "sidekick_cpus": {"model": "bert", "core_count": 2},
            "sidekick_memory": [{"model": "bert", "memory_spec": "2GiB"}],
            "sidekick_env": {"model": "bert", "environment": {"A": 1}},
        }
    )

    amounts = {"cpu": 0.25, "memory": "999Mi", "nvidia.com/gpu": 1}
    assert made["engine"] == {
        "cpu": 0.25,
        "gpu": 1,
        "replicas": 2,
        "arch": "arm",
        "node_selector": "doc.ai/gpu:true",
        "autoscale": {"replica_min": 0, "replica_max": 3, "type": "cpu", "cpu_utilization": 75},
        "resources": {"limits": amounts, "requests": amounts},
    }
    balancer = {"cpu": 1.5, "memory": "1Gi"}
    assert made["enginelb"] == {"resources": {"limits": balancer, "requests": balancer}}
    sidekick = {"cpu": 2, "memory": "2Gi"}
    assert made["engineAux"]["images"] == {
        "bert": {"resources": {"limits": sidekick, "requests": sidekick}, "env": [{"name": "A", "value": "1"}]}
    }


def test_what_clients_send_is_kept_as_it_came() -> None:
    sent = {
        "engine": {
            "arch": "x86",
            "accel": "none",
            "cpu": 1,
            "resources": {"limits": {"cpu": 1, "memory": "1Gi"}},
            "x": 1,
        },
        "enginelb": {},
        "engineAux": {"images": {"bert-31": {"accel": {"qaic": {"num_cores": 16}}}}},
        "workspace_id": 3,
        "node_selector": {},
    }

    assert normalise(sent) == sent
    assert normalise(normalise(sent)) == sent


def test_numbers_are_read_out_of_the_nested_form() -> None:
    wanted = interpret(
        normalise(
            {
                "engine": {
                    "accel": "openvino",
                    "gpu": 1,
                    "replicas": 2.0,
                    "node_selector": "a:b",
                    "autoscale": {"type": "queue", "replica_max": 4, "scale_up_queue_depth": 5},
                    "resources": {"limits": {"cpu": "500m", "memory": "1.5Gi"}, "requests": {"cpu": 0.25}},
                }
            }
        )
    )

    assert (wanted.replicas, wanted.engine.cpus, wanted.engine.memory_bytes) == (2, 0.5, 1536 * 1024**2)
    assert (wanted.engine.gpus, wanted.engine.gpu_key) == (1, "gpu.intel.com/i915")
    assert wanted.autoscale == Autoscale(0, 4, queue_depth=5)
    assert wanted.node_selector == {"a": "b"}


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"engine": 5}, "engine"),
        ({"cpus": "lots"}, "cpus"),
        ({"cpus": -1}, "cpus"),
        ({"cpus": True}, "cpus"),
        ({"memory": "1Qi"}, "memory"),
        ({"memory": "Gi"}, "memory"),
        ({"memory": {}}, "memory"),
        ({"replica_count": 1.5}, "replica_count"),
        ({"replica_count": 10**6}, "replica_count"),
        ({"engine": {"replicas": -1}}, "engine.replicas"),
        ({"engine": {"arch": "sparc"}}, "engine.arch"),
        ({"accel": "magic"}, "engine.accel"),
        ({"replica_autoscale_min_max": {"maximum": 1, "minimum": 2}}, "autoscale"),
        ({"replica_autoscale_min_max": 3}, "replica_autoscale_min_max"),
        ({"sidekick_cpus": {"core_count": 1}}, "sidekick_cpus"),
        ({"engine": {"resources": {"limits": {"memory": "x"}}}}, "engine.resources.limits.memory"),
        ({"engineAux": {"images": {"m": 4}}}, "engineAux.images.m"),
        ({"engineAux": {"images": []}}, "engineAux.images"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(config: dict[str, Any], place: str) -> None:
    with pytest.raises(Invalid) as caught:
        normalise(config)

    assert place in caught.value.message


def test_a_sidekick_named_by_its_model_gets_the_name_clients_look_for() -> None:
    nested = normalise({"sidekick_arch": {"model": "bert", "arch": "x86"}})

    assert name_images(nested, {"bert": 31})["engineAux"]["images"] == {"bert-31": {"arch": "x86"}}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1Gi", 1024**3),
        ("1GiB", 1024**3),
        ("512MiB", 512 * 1024**2),
        ("1G", 10**9),
        ("1.5G", 1_500_000_000),
        ("2Ki", 2048),
        ("100", 100),
        (100, 100),
        ("1e3", 1000),
        ("1500m", 1),
    ],
)
def test_memory_is_read_as_kubernetes_and_the_guide_write_it(text: Any, size: int) -> None:
    assert parse_memory(text) == size


@settings(deadline=None)
@given(st.integers(1, 2**59))
def test_a_memory_quantity_reads_back_as_what_it_was(size: int) -> None:
    assert parse_memory(memory_quantity(size)) == size


@settings(deadline=None)
@given(st.one_of(st.text(max_size=12), st.floats(), st.integers(), st.none(), st.booleans(), st.lists(st.none())))
def test_no_amount_ever_crashes_the_reader(value: Any) -> None:
    for read in (parse_memory, parse_cpus):
        with contextlib.suppress(Invalid):
            assert read(value) >= 0


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 10**7), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)
KEYS = [
    "engine", "enginelb", "engineAux", "cpus", "memory", "gpus", "replica_count", "replica_autoscale_min_max",
    "autoscale_cpu_utilization", "disable_autoscale", "deployment_label", "arch", "accel", "sidekick_cpus",
    "sidekick_env",
]  # fmt: skip
INNER = ["resources", "autoscale", "replicas", "accel", "arch", "node_selector", "images", "cpu", "gpu", "image"]


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(KEYS), st.one_of(JSON, st.dictionaries(st.sampled_from(INNER), JSON)), max_size=4)
)
def test_any_configuration_is_either_refused_or_settled_at_once(config: dict[str, Any]) -> None:
    try:
        made = normalise(config)
    except Invalid:
        return

    assert repr(normalise(made)) == repr(made)
    assert interpret(made).replicas >= 0


@pytest.mark.parametrize(
    "config",
    [
        {"engine": {"autoscale": 3}, "autoscale_cpu_utilization": 5},
        {"engine": {"resources": {"limits": 3}}, "cpus": 1},
        {"engineAux": {"images": {"m": 3}}, "sidekick_arch": {"model": "m", "arch": "x86"}},
    ],
)
def test_the_two_spellings_mixed_do_not_crash(config: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        normalise(config)
