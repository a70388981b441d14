from __future__ import annotations

from pathlib import Path

from engine.server.metrics import HELP, Metrics, labels, merge, render

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_every_metric_is_in_the_docs() -> None:
    text = DOCS.read_text()

    assert [name for name in HELP if f"`{name}`" not in text] == []


def test_numbers_of_several_processes_add_up_to_one_exposition() -> None:
    first, second = Metrics(), Metrics()
    label_set = labels(pipeline_name='a"b', deploy_id="d")
    for metrics, values in ((first, (5, 20_000)), (second, (10**12,))):
        for value in values:
            metrics.histogram("latency_histogram_ns", label_set).observe(value)
        metrics.add("tensor_throughput_batch_count", label_set, 3)

    lines = render(merge([first.snapshot(), second.snapshot()])).decode().splitlines()

    assert 'tensor_throughput_batch_count{pipeline_name="a\\"b",deploy_id="d"} 6' in lines
    assert 'latency_histogram_ns_count{pipeline_name="a\\"b",deploy_id="d"} 3' in lines
    assert 'latency_histogram_ns_bucket{pipeline_name="a\\"b",deploy_id="d",le="10000"} 1' in lines
    assert 'latency_histogram_ns_bucket{pipeline_name="a\\"b",deploy_id="d",le="+Inf"} 3' in lines
    assert lines.index("# TYPE latency_histogram_ns histogram") < lines.index(
        "# TYPE tensor_throughput_batch_count counter"
    )
