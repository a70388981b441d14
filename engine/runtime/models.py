"""What a pipeline asks of a model, whatever runs it."""

from __future__ import annotations

from typing import Protocol

import msgspec
import pyarrow as pa

from engine.contract.deployment import ModelDocument
from engine.runtime.tensors import TensorSpec


class LoadError(Exception):
    """A model or pipeline that cannot be made ready; the text says why, for a person who can change it."""


class ModelOutput(msgspec.Struct, frozen=True):
    """What a model made of a batch."""

    batch: pa.RecordBatch
    varying: frozenset[str] = frozenset()
    """Outputs whose row shape differs from request to request, so that it must not be part of a log's schema."""


class Model(Protocol):
    """A loaded model version."""

    document: ModelDocument
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def usual_fields(self) -> list[str]:
        """The fields that callers send when they follow the model's configuration."""

    def columns(self, names: list[str], *, from_step: bool) -> list[str]:
        """Say which columns feed the inputs, in the inputs' order; raises `BadInput` when one is missing."""

    def run(self, batch: pa.RecordBatch, *, from_step: bool) -> ModelOutput:
        """Infer on every row; raises `InferenceFailure`.

        `from_step` says that the columns come from another step, not from the caller: names may then differ.
        """

    def warm_up(self) -> None:
        """Run once on zeroes where the shapes are known, so that the first request is not the slow one."""
