"""Choose what runs a model version, and load it."""

from __future__ import annotations

from collections.abc import Callable

from engine.contract.deployment import ModelDocument
from engine.runtime.models import LoadError, Model


def _load_onnx(document: ModelDocument, threads: int) -> Model:
    from engine.runtime.onnx import OnnxModel

    return OnnxModel(document, threads)


RUNTIMES: dict[str, Callable[[ModelDocument, int], Model]] = {"onnx": _load_onnx}
"""What runs models, by the `runtime` of their configuration."""


def load_model(document: ModelDocument, threads: int) -> Model:
    """Load a model version; raises `LoadError` saying why it cannot be."""
    loader = RUNTIMES.get(document.config.runtime)
    if loader is None:
        raise LoadError(
            f"Model {document.name!r} needs the runtime {document.config.runtime!r}; "
            f"this engine runs {', '.join(RUNTIMES)}."
        )
    return loader(document, threads)
