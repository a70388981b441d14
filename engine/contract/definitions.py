"""Pipeline definitions: read into typed steps, and refused with a reason when they make no sense."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from engine.contract import checks, expressions
from engine.contract.checks import DefinitionError

__all__ = ["Definition", "DefinitionError", "ModelReference", "Step", "model_references", "parse_definition"]

DATA_TYPES = ("f32", "f64", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64")


class ModelReference(msgspec.Struct, frozen=True):
    """A model version as a step names it."""

    name: str
    version: str
    sha: str = ""


class ModelInference(msgspec.Struct, frozen=True):
    """Run one model, or several on the same input (then the outputs are a list until reduced)."""

    models: tuple[ModelReference, ...]


class AuditResults(msgspec.Struct, frozen=True):
    """Record the outputs of list positions from `start` to `stop` in the log."""

    start: int
    stop: int | None


class MultiOut(msgspec.Struct, frozen=True):
    """The first output is the answer, the others are shown beside it as `out_<model>`."""


class Nth(msgspec.Struct, frozen=True):
    """Keep one output of the list."""

    index: int


class Average(msgspec.Struct, frozen=True):
    """The element-wise mean of the outputs of the list."""


class MetaValueSplit(msgspec.Struct, frozen=True):
    """Choose the model by the value of a request field."""

    split_key: str
    control: ModelReference
    routes: dict[str, ModelReference]


class RandomSplit(msgspec.Struct, frozen=True):
    """Choose one model per request at random by weight, or by the value of a request field."""

    hash_key: str | None
    weights: tuple[tuple[ModelReference, float], ...]


class TreeCheck(msgspec.Struct, frozen=True):
    """Validations of the older kind; each row's failed ones are listed in `check_failures`."""

    validations: tuple[checks.Validation, ...]


class ExpressionCheck(msgspec.Struct, frozen=True):
    """Validations of the newer kind; each is a column of `anomaly`."""

    expressions: tuple[expressions.NamedExpression, ...]


class ColumnsSelect(msgspec.Struct, frozen=True):
    """Keep some columns, by position."""

    columns: tuple[int, ...]


class ColumnsToRows(msgspec.Struct, frozen=True):
    """Make a row of every column."""


class RowsToModels(msgspec.Struct, frozen=True):
    """Send each row to the model given for its position."""

    models: dict[int, ModelReference]


class InputDataToType(msgspec.Struct, frozen=True):
    """Convert numbers to one type."""

    data_type: str


Step = (
    ModelInference
    | AuditResults
    | MultiOut
    | Nth
    | Average
    | MetaValueSplit
    | RandomSplit
    | TreeCheck
    | ExpressionCheck
    | ColumnsSelect
    | ColumnsToRows
    | RowsToModels
    | InputDataToType
)


class Definition(msgspec.Struct, frozen=True):
    """The steps of a pipeline, checked to fit together."""

    steps: tuple[Step, ...]

    @property
    def models(self) -> tuple[ModelReference, ...]:
        """Every model version that any step may run, each once, in the order of first mention."""
        return tuple(dict.fromkeys(reference for step in self.steps for reference in step_models(step)))

    @property
    def generation(self) -> Literal["check_failures", "anomaly"] | None:
        """Which form of check results the steps ask for; None when there are no checks."""
        kinds = {type(step) for step in self.steps}
        if ExpressionCheck in kinds:
            return "anomaly"
        return "check_failures" if TreeCheck in kinds else None


def step_kind(step: Step) -> str:
    """Return the name by which definitions call a step."""
    return "Check" if isinstance(step, TreeCheck | ExpressionCheck) else type(step).__name__


def step_models(step: Step) -> tuple[ModelReference, ...]:
    """Return the models that a step may run."""
    if isinstance(step, ModelInference):
        return step.models
    if isinstance(step, MetaValueSplit):
        return (step.control, *step.routes.values())
    if isinstance(step, RandomSplit):
        return tuple(reference for reference, _ in step.weights)
    if isinstance(step, RowsToModels):
        return tuple(step.models.values())
    return ()


def model_references(definition: Mapping[str, Any]) -> tuple[ModelReference, ...]:
    """Return every model version that a definition mentions; raises `DefinitionError` as `parse_definition` does."""
    return parse_definition(definition).models


def parse_definition(definition: Mapping[str, Any] | None) -> Definition:
    """Read a definition as stored; no steps at all are a pipeline that gives back its input.

    Raises `DefinitionError` naming the step (counted from 1) and what is wrong with it.
    """
    if definition is not None and not isinstance(definition, Mapping):
        raise DefinitionError("a definition is an object with steps")
    raw = (definition or {}).get("steps") or []
    if not isinstance(raw, list):
        raise DefinitionError("steps must be a list")
    steps = []
    for number, step in enumerate(raw, 1):
        try:
            steps.append(_parse_step(step))
        except DefinitionError as exc:
            raise DefinitionError(f"Step {number}: {exc}") from exc
    _check_flow(steps)
    return Definition(tuple(steps))


def _parse_step(step: Any) -> Step:
    if not isinstance(step, Mapping) or len(step) != 1:
        raise DefinitionError("a step is an object with one key, its kind")
    kind, body = next(iter(step.items()))
    reader = _READERS.get(kind)
    if reader is None:
        raise DefinitionError(f"steps of kind {kind!r} cannot be run; known kinds are {', '.join(_READERS)}")
    if not isinstance(body, Mapping):
        raise DefinitionError(f"{kind} needs an object")
    try:
        return reader(body)
    except KeyError as exc:
        raise DefinitionError(f"{kind} lacks {exc}") from exc
    except (TypeError, ValueError, AttributeError, RecursionError) as exc:
        raise DefinitionError(f"{kind} has a part of the wrong kind: {exc}") from exc


def _reference(value: Any) -> ModelReference:
    if not isinstance(value, Mapping) or not all(isinstance(value.get(key), str) for key in ("name", "version")):
        raise DefinitionError("a model is named by an object with name and version (and sha)")
    sha = value.get("sha")
    return ModelReference(value["name"], value["version"], sha if isinstance(sha, str) else "")


def _list(body: Mapping[str, Any], key: str) -> list[Any]:
    values = body[key]
    if not isinstance(values, list) or not values:
        raise DefinitionError(f"{key} must be a list with at least one entry")
    return values


def _position(value: Any, name: str) -> int:
    if type(value) is not int or value < 0:
        raise DefinitionError(f"{name} must be a number from 0 on, not {value!r}")
    return value


def _model_inference(body: Mapping[str, Any]) -> ModelInference:
    return ModelInference(tuple(_reference(model) for model in _list(body, "models")))


def _audit_results(body: Mapping[str, Any]) -> AuditResults:
    stop = body.get("to")
    return AuditResults(_position(body.get("from") or 0, "from"), None if stop is None else _position(stop, "to"))


def _meta_value_split(body: Mapping[str, Any]) -> MetaValueSplit:
    routes, key = body["routes"], body["split_key"]
    if not isinstance(routes, Mapping) or not isinstance(key, str):
        raise DefinitionError("MetaValueSplit needs a split_key (text) and routes (an object)")
    return MetaValueSplit(key, _reference(body["control"]), {str(k): _reference(v) for k, v in routes.items()})


def _random_split(body: Mapping[str, Any]) -> RandomSplit:
    key = body.get("hash_key")
    if key is not None and not isinstance(key, str):
        raise DefinitionError("hash_key must be the name of an input field, or null")
    weights = []
    for entry in _list(body, "weights"):
        weight = entry.get("weight") if isinstance(entry, Mapping) else None
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise DefinitionError(f"a weight must be a number from 0 on, not {weight!r}")
        weights.append((_reference(entry["model"]), float(weight)))
    if not sum(weight for _, weight in weights) > 0:
        raise DefinitionError("the weights of a RandomSplit must not all be 0")
    return RandomSplit(key, tuple(weights))


def _check(body: Mapping[str, Any]) -> TreeCheck | ExpressionCheck:
    trees = []
    for text in _list(body, "tree"):
        try:
            trees.append(msgspec.json.decode(text) if isinstance(text, str) else text)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise DefinitionError(f"a check is not valid JSON text: {exc}") from exc
    old = [isinstance(tree, Mapping) and "values" in tree for tree in trees]
    if all(old):
        return TreeCheck(tuple(validation for tree in trees for validation in checks.parse_tree(tree)))
    if any(old):
        raise DefinitionError("a Check holds either one old tree or expressions, not both")
    return ExpressionCheck(tuple(expressions.parse_named(tree) for tree in trees))


def _columns_select(body: Mapping[str, Any]) -> ColumnsSelect:
    return ColumnsSelect(tuple(_position(index, "a column") for index in _list(body, "columns")))


def _rows_to_models(body: Mapping[str, Any]) -> RowsToModels:
    models: dict[int, ModelReference] = {}
    for entry in _list(body, "rows_to_models"):
        index = _position(entry.get("row_index") if isinstance(entry, Mapping) else None, "row_index")
        if index in models:
            raise DefinitionError(f"row {index} is given to two models")
        models[index] = _reference(entry["model"])
    return RowsToModels(models)


def _input_data_to_type(body: Mapping[str, Any]) -> InputDataToType:
    if body["data_type"] not in DATA_TYPES:
        raise DefinitionError(f"data_type must be one of {', '.join(DATA_TYPES)}, not {body['data_type']!r}")
    return InputDataToType(body["data_type"])


_READERS: dict[str, Callable[[Mapping[str, Any]], Step]] = {
    "ModelInference": _model_inference,
    "AuditResults": _audit_results,
    "MultiOut": lambda _: MultiOut(),
    "Nth": lambda body: Nth(_position(body["index"], "index")),
    "Average": lambda _: Average(),
    "MetaValueSplit": _meta_value_split,
    "RandomSplit": _random_split,
    "Check": _check,
    "ColumnsSelect": _columns_select,
    "ColumnsToRows": lambda _: ColumnsToRows(),
    "RowsToModels": _rows_to_models,
    "InputDataToType": _input_data_to_type,
}


def _check_flow(steps: list[Step]) -> None:
    """Refuse steps that do not fit together: a list of outputs where one is needed, checks of models that never run."""
    pending: tuple[ModelReference, ...] = ()
    run: set[str] = set()
    for number, step in enumerate(steps, 1):
        kind = step_kind(step)
        is_many = len(pending) > 1
        if is_many and not isinstance(step, AuditResults | MultiOut | Nth | Average | TreeCheck | ExpressionCheck):
            raise DefinitionError(
                f"Step {number}: {kind} cannot take the outputs of {len(pending)} models; "
                "put MultiOut, Nth or Average before it"
            )
        if not pending and isinstance(step, AuditResults | MultiOut | Nth | Average):
            raise DefinitionError(f"Step {number}: {kind} needs a model before it")
        if isinstance(step, Nth) and step.index >= len(pending):
            raise DefinitionError(f"Step {number}: Nth asks for output {step.index}; there are {len(pending)} (from 0)")
        if isinstance(step, MultiOut):
            _check_distinct(pending[1:], number)
        models = step_models(step)
        if models:
            run.update(model.name for model in models)
            pending = models if isinstance(step, ModelInference) else models[:1]
        elif isinstance(step, MultiOut | Nth | Average):
            pending = pending[:1]
        for name in _checked_models(step):
            if name not in run:
                raise DefinitionError(
                    f"Step {number}: a validation looks at model {name!r}, which no step before it runs"
                )
    if len(pending) > 1:
        names = ", ".join(model.name for model in pending)
        raise DefinitionError(f"The outputs of {names} are never reduced to one; add MultiOut, Nth or Average")


def _check_distinct(challengers: tuple[ModelReference, ...], number: int) -> None:
    names = [model.name for model in challengers]
    for name in names:
        if names.count(name) > 1:
            raise DefinitionError(
                f"Step {number}: MultiOut would show two outputs as out_{name}; give one another name"
            )


def _checked_models(step: Step) -> Iterator[str]:
    if isinstance(step, TreeCheck):
        for validation in step.validations:
            for variable in checks.variables(validation.root):
                yield variable.model
