"""Look into an ONNX file: what goes in, what comes out, and whether the engine can run it.

Run as `python -m engine.convert.inspect FILE`, in a process of its own that bounds itself. Prints one JSON object:
`{"inspection": {…}}`, or `{"problem": "…"}` for a file that cannot be used, in words for whoever uploaded it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.convert.limits import confine

_MOST_BYTES = 2**31 - 1
"""No protobuf message is larger."""
_TEXT = 200
_PORTS = 10_000


class Unusable(Exception):
    """The file cannot be used; the text says why, and what to do."""


def inspect(path: Path) -> dict[str, Any]:
    """Return what the ONNX file at `path` is; raises `Unusable`."""
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise Unusable(
            f"The file has {size:,} bytes; an ONNX model in one file has at most 2 GiB. "
            "Make the model smaller (half precision, quantization)."
        )
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it has no stubs

    try:
        model = onnx.load(str(path), load_external_data=False, format="protobuf")
    except DecodeError as exc:
        raise Unusable("The file is no ONNX model: it cannot be read as one.") from exc
    if not model.ir_version or not model.HasField("graph") or not model.graph.output:
        raise Unusable("The file is no ONNX model: it has no graph with outputs.")
    _check_external(model)
    opsets = {o.domain or "ai.onnx": int(o.version) for o in model.opset_import}
    _check_opsets(onnx, opsets)
    found = {
        "format": "onnx",
        "ir_version": int(model.ir_version),
        "opsets": opsets,
        "producer": " ".join(x for x in (model.producer_name, model.producer_version) if x)[:_TEXT],
        "nodes": len(model.graph.node),
    }
    del model
    return found | _load(path)


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor of a model: weights and constants, in its graph, in what lies inside nodes, in functions."""
    graphs, nodes = [model.graph], [n for f in model.functions for n in f.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield sparse.values
                yield sparse.indices
            nodes.extend(graph.node)
        else:
            for attribute in nodes.pop().attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("sparse_tensor"):
                    yield attribute.sparse_tensor.values
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs.extend(attribute.graphs)


def _check_external(model: Any) -> None:
    outside = [t for t in _tensors(model) if t.data_location == t.EXTERNAL]
    if not outside:
        return
    files = sorted({e.value for t in outside for e in t.external_data if e.key == "location"})
    names = ", ".join(repr(f[:_TEXT]) for f in files[:3]) or "files that it does not name"
    raise Unusable(
        f"The model keeps {len(outside)} of its tensors outside the file, in {names}, which did not come with it. Save "
        "it in one file: onnx.save(onnx.load(path), target, save_as_external_data=False)."
    )


def _check_opsets(onnx: Any, opsets: dict[str, int]) -> None:
    if not opsets:
        raise Unusable("The model names no operator set, so what its operators mean is not known.")
    known = {"ai.onnx": onnx.defs.onnx_opset_version(), "ai.onnx.ml": onnx.defs.onnx_ml_opset_version()}
    for domain, newest in known.items():
        version = opsets.get(domain, 1)
        if not 1 <= version <= newest:
            raise Unusable(
                f"The model uses version {version} of the operator set {domain}; this server runs versions 1 to "
                f"{newest}. Export it with a target opset of {newest} or lower."
            )


def _load(path: Path) -> dict[str, Any]:
    """Load the model as the engine will; returns its inputs and outputs as the engine sees them."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except MemoryError:
        raise
    except _refusals() as exc:
        text = " ".join(str(exc).replace(str(path), "the file").split())
        if "bad_alloc" in text or "Failed to allocate memory" in text:
            raise MemoryError from exc
        raise Unusable(f"The engine cannot load the model: {text[:1000]}") from exc
    return {
        "runtime": f"onnxruntime {ort.__version__}",
        "inputs": [_port(p) for p in session.get_inputs()[:_PORTS]],
        "outputs": [_port(p) for p in session.get_outputs()[:_PORTS]],
    }


def _refusals() -> tuple[type[Exception], ...]:
    """Return the exceptions by which onnxruntime says that it cannot run a model; they have no common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError)


def _port(port: Any) -> dict[str, Any]:
    """Return name, type and shape of an input or output; an axis is a number, a name, or None for any."""
    return {
        "name": port.name[:_TEXT],
        "type": port.type,
        "shape": [axis if isinstance(axis, int) else (axis or None) for axis in port.shape],
    }


def main() -> None:
    """Inspect the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--memory-bytes", type=int, default=8 * 1024**3)
    parser.add_argument("--cpu-s", type=int, default=120)
    asked = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"  # each thread of theirs would reserve memory
    confine(asked.memory_bytes, asked.cpu_s)
    try:
        answer: dict[str, Any] = {"inspection": inspect(asked.file)}
    except Unusable as exc:
        answer = {"problem": str(exc)}
    except MemoryError:
        gib = asked.memory_bytes / 1024**3
        answer = {"problem": f"Loading the model needs more memory than an inspection may use ({gib:.1f} GiB)."}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
