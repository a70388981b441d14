"""An engine: the pipelines of one deployment document, ready to infer.

`Engine.infer` is the plain path, made of parts that can be used alone: `formats.decode` (bytes → record batch),
`Pipeline.run` (record batch → `Answer`), `Engine.record` (→ the nested record), `datasets.select` and
`Engine.encode` (→ reply). Faster paths give the same bytes for the cases they know, and leave the rest to this one.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import msgspec
import pyarrow as pa

from engine.contract import arrow_files, codecs, custom_json, records
from engine.contract.datasets import FLAT, Selection, parse_selection, select
from engine.contract.definitions import DefinitionError, ModelReference, parse_definition
from engine.contract.deployment import DeploymentDocument, ModelDocument, ModelStatus, PipelineDocument, PipelineStatus
from engine.contract.failures import InferenceFailure, failure_body
from engine.runtime import formats
from engine.runtime.failures import failure_record
from engine.runtime.formats import Decoded, Format
from engine.runtime.loading import load_model
from engine.runtime.models import LoadError, Model
from engine.runtime.pipeline import SPLIT_FIELD, Answer, Pipeline

log = logging.getLogger(__name__)

_MAX_ELAPSED = 2**32 - 1


class InferRequest(msgspec.Struct, frozen=True):
    """One inference as it came over HTTP."""

    pipeline: str
    content_type: str | None
    body: bytes | bytearray | memoryview
    accept: str | None = None
    query: str = ""
    """The raw query string, without `?`."""
    user_agent: str | None = None
    received_ns: int = 0
    """`time.perf_counter_ns()` when the request was complete; 0: when `infer` was called."""
    wall_ms: int = 0
    """Epoch milliseconds for the record's `time`; 0: now."""


class InferReply(msgspec.Struct, frozen=True):
    """What to answer, and what to keep in the log before the answer goes out."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    record: pa.RecordBatch | None = None
    """Nested log rows for `topic`; None when there are none (a failure, or a request without rows)."""
    failure: pa.RecordBatch | None = None
    """Log row for `<topic>-failures`."""
    topic: str = ""
    """Empty when the pipeline is unknown."""
    rows: int = 0
    """Rows inferred on."""
    execution_ns: int = 0
    """Time the steps took."""


class Engine:
    """The pipelines of one deployment; thread-safe once loaded."""

    def __init__(self, document: DeploymentDocument) -> None:
        self.document = document
        self.pipelines: dict[str, Pipeline] = {}
        self.models: dict[int, Model] = {}
        """Loaded model versions by `model_version_id`."""
        self._model_states: dict[int, tuple[str, str | None]] = {}
        self._pipeline_states: dict[str, tuple[str, str | None]] = {}

    def load(self) -> None:
        """Load every model version once, warm it up, and build the pipelines.

        Raises `LoadError` with the first reason that keeps the deployment from running; `status` shows which parts
        are ready and which are not.
        """
        reasons = []
        for model in self.document.models:
            try:
                self._load_model(model)
            except LoadError as exc:
                self._model_states[model.model_version_id] = ("Error", str(exc))
                reasons.append(str(exc))
        for pipeline in self.document.pipelines:
            try:
                if not reasons:
                    self.pipelines[pipeline.id] = self._build(pipeline)
                    self._pipeline_states[pipeline.id] = ("Running", None)
            except LoadError as exc:
                self._pipeline_states[pipeline.id] = ("Error", str(exc))
                reasons.append(str(exc))
        if reasons:
            for pipeline in self.document.pipelines:
                self._pipeline_states.setdefault(pipeline.id, ("Error", reasons[0]))
            raise LoadError(reasons[0])

    def _load_model(self, document: ModelDocument) -> None:
        if document.model_version_id in self.models:
            return
        model = load_model(document, self.document.resources.threads)
        model.warm_up()
        self.models[document.model_version_id] = model
        self._model_states[document.model_version_id] = ("Running", None)

    def _build(self, document: PipelineDocument) -> Pipeline:
        try:
            definition = parse_definition(document.definition)
        except DefinitionError as exc:
            raise LoadError(f"Pipeline {document.id!r}: {exc}") from exc
        models: dict[ModelReference, Model] = {}
        for reference in definition.models:
            for model in self.models.values():
                if (model.document.name, model.document.version) == (reference.name, reference.version):
                    models[reference] = model
        pipeline = Pipeline(document, definition, models, self.document.split_record)
        self._rehearse(pipeline)
        return pipeline

    def _rehearse(self, pipeline: Pipeline) -> None:
        """Send a row of zeroes through all of an inference, so that the first caller does not wait for first times."""
        zeroes = pipeline.zeroes()
        if zeroes is None:
            return
        try:
            answer = pipeline.run(zeroes)
        except InferenceFailure:
            return  # Zeroes need not suit the pipeline (a field that chooses the model is missing).
        full = self.record(pipeline, zeroes, answer, self.metadata(pipeline, answer, (0, 0)), 0)
        self.log_record(full, answer)
        for form in (codecs.encode_records, arrow_files.encode_file):
            form(select(full, FLAT))

    def status(self) -> tuple[list[PipelineStatus], list[ModelStatus]]:
        """Return how each pipeline and each model version stands."""
        pipelines = []
        for pipeline in self.document.pipelines:
            state, reason = self._pipeline_states.get(pipeline.id, ("Starting", None))
            pipelines.append(PipelineStatus(id=pipeline.id, version=pipeline.version, status=state, reason=reason))
        models = []
        for document in self.document.models:
            state, reason = self._model_states.get(document.model_version_id, ("Starting", None))
            models.append(
                ModelStatus(
                    model_version_id=document.model_version_id,
                    name=document.name,
                    version=document.version,
                    sha=document.sha,
                    status=state,
                    reason=reason,
                )
            )
        return pipelines, models

    def infer(self, request: InferRequest) -> InferReply:
        """Answer one request; what is wrong with it is in the reply, never raised."""
        received = request.received_ns or time.perf_counter_ns()
        wall_ms = request.wall_ms or time.time_ns() // 1_000_000
        pipeline = self.pipelines.get(request.pipeline)
        if pipeline is None:
            failure = InferenceFailure(f"Pipeline {request.pipeline!r} is not deployed here.", status=404)
            return self._failed(failure, request, None, None, wall_ms)
        decoded: Decoded | None = None
        try:
            selection = parse_selection(request.query)
            decoded = formats.decode(request.content_type, request.body, pipeline)
            started = time.perf_counter_ns()
            answer = pipeline.run(decoded.batch)
            finished = time.perf_counter_ns()
            metadata = self.metadata(pipeline, answer, (started - received, finished - started))
            full = self.record(pipeline, decoded.batch, answer, metadata, wall_ms)
            form = formats.reply_format(request.accept, decoded.format)
            content_type, body = self.encode(form, pipeline, decoded, answer, full, metadata, selection, wall_ms)
            kept = self.log_record(full, answer)
        except InferenceFailure as exc:
            return self._failed(exc, request, pipeline, decoded, wall_ms)
        except Exception:
            # The last line of defence of a server that must answer: a bug costs this request only, and is logged.
            log.exception("inference.bug pipeline=%s", request.pipeline)
            failure = InferenceFailure("The engine failed on this request; its log says more.")
            return self._failed(failure, request, pipeline, decoded, wall_ms)
        return InferReply(
            status=200,
            content_type=content_type,
            body=body,
            record=kept if kept.num_rows else None,
            topic=pipeline.document.topic,
            rows=decoded.batch.num_rows,
            execution_ns=finished - started,
        )

    def metadata(self, pipeline: Pipeline, answer: Answer, elapsed_ns: tuple[int, int]) -> records.RecordMetadata:
        """Return the `metadata` of a record."""
        last = answer.last_model
        text = records.last_model_text(last.document.name, last.document.sha) if last else ""
        handling, execution = (min(max(value, 0), _MAX_ELAPSED) for value in elapsed_ns)
        return records.RecordMetadata(text, pipeline.document.version, (handling, execution), self.document.replica)

    def shown_checks(self, pipeline: Pipeline) -> tuple[bool, bool]:
        """Say whether records of this pipeline carry `check_failures`, and whether `anomaly`."""
        wanted = self.document.check_columns
        if wanted == "auto":
            wanted = pipeline.definition.generation or "anomaly"
        return wanted in ("both", "check_failures"), wanted in ("both", "anomaly")

    def record(
        self,
        pipeline: Pipeline,
        request: pa.RecordBatch,
        answer: Answer,
        metadata: records.RecordMetadata,
        wall_ms: int,
    ) -> pa.RecordBatch:
        """Return the full nested record of an answer."""
        rows = request.num_rows
        has_failures, has_anomaly = self.shown_checks(pipeline)
        failures = None
        if has_failures:
            found = answer.check_failures
            failures = records.check_failure_array(found) if found else records.no_check_failures(rows)
        anomaly = records.anomaly_batch(answer.anomalies, rows) if has_anomaly else None
        inputs = pipeline.annotated(request)
        return records.build_record(wall_ms, inputs, answer.output, failures, anomaly, answer.others, metadata)

    def log_record(self, full: pa.RecordBatch, answer: Answer) -> pa.RecordBatch:
        """Return the rows that the log keeps of a full record."""
        limit = self.document.log.record_bytes_limit if self.document.log else 2**62
        return records.for_log(full, limit, answer.audited, answer.varying)

    def encode(  # noqa: PLR0917 - everything a format may show
        self,
        form: Format,
        pipeline: Pipeline,
        decoded: Decoded,
        answer: Answer,
        full: pa.RecordBatch,
        metadata: records.RecordMetadata,
        selection: Selection,
        wall_ms: int,
    ) -> tuple[str, bytes]:
        """Return the content type and the bytes of the reply."""
        if form is Format.CUSTOM:
            return formats.CUSTOM_TYPE, self._custom(pipeline, decoded, answer, metadata, wall_ms)
        chosen = select(full, selection)
        if form is Format.ARROW:
            return formats.ARROW_TYPE, arrow_files.encode_file(chosen)
        return formats.RECORDS_TYPE, codecs.encode_records(chosen)

    def _custom(
        self, pipeline: Pipeline, decoded: Decoded, answer: Answer, metadata: records.RecordMetadata, wall_ms: int
    ) -> bytes:
        last = answer.last_model
        result = custom_json.CustomResult(
            pipeline_name=pipeline.document.id,
            model_name=last.document.name if last else "",
            model_version=last.document.version if last else "",
            elapsed_ns=metadata.elapsed_ns,
            time_ms=wall_ms,
            check_failures=answer.check_failures or [],
        )
        output = answer.output
        if SPLIT_FIELD in output.schema.names:
            output = output.select([name for name in output.schema.names if name != SPLIT_FIELD])
        shadows = [(name.removeprefix("out_"), batch) for name, batch in answer.others]
        original: Any = decoded.batch if decoded.original is None else decoded.original
        return custom_json.encode_result(original, output, shadows, result)

    def _failed(
        self,
        failure: InferenceFailure,
        request: InferRequest,
        pipeline: Pipeline | None,
        decoded: Decoded | None,
        wall_ms: int,
    ) -> InferReply:
        body = failure_body(failure.message, failure.status, request.user_agent, failure.source)
        if pipeline is None:
            return InferReply(status=failure.status, content_type=formats.JSON_TYPE, body=body)
        kept = failure_record(failure, decoded, pipeline.document.version, self.document.replica, wall_ms)
        return InferReply(
            status=failure.status,
            content_type=formats.JSON_TYPE,
            body=body,
            failure=kept,
            topic=pipeline.document.topic,
        )
