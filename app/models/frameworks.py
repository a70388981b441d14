"""What models may be made of, and which of it this server can run."""

from __future__ import annotations

from typing import Any

from app.errors import Invalid

RUNTIMES = {"onnx": "onnx"}
"""The frameworks that can be run here, each with the runtime that runs it."""

_TASKS = (
    "automatic-speech-recognition",
    "feature-extraction",
    "image-classification",
    "image-segmentation",
    "image-to-text",
    "object-detection",
    "question-answering",
    "sentiment-analysis",
    "stable-diffusion-text-2-img",
    "summarization",
    "text-classification",
    "text-generation",
    "translation",
    "zero-shot-classification",
    "zero-shot-image-classification",
    "zero-shot-object-detection",
)
KNOWN = frozenset(
    {"onnx", "tensorflow", "python", "keras", "sklearn", "pytorch", "xgboost", "custom", "mlflow", "vllm", "sglang"}
    | {f"hugging-face-{task}" for task in _TASKS}
)
"""The frameworks that clients may name."""

_BY_SUFFIX = {".onnx": "onnx", ".py": "python"}
_ARCHITECTURES = ("x86", "arm", "power10")
_ACCELERATIONS = {
    "none": _ARCHITECTURES,
    "cuda": _ARCHITECTURES,
    "jetson": ("arm",),
    "aio": ("arm",),
    "openvino": ("x86",),
    "qaic": ("x86",),
    "rocm": ("x86",),
}


def check_framework(framework: str) -> str:
    """Return the runtime for `framework`; raises `Invalid` with the list of those that can be run here."""
    if framework in RUNTIMES:
        return RUNTIMES[framework]
    state = "cannot be run by this server yet" if framework in KNOWN else "is not known"
    raise Invalid(f"Framework {framework[:80]!r} {state}. This server runs: {', '.join(sorted(RUNTIMES))}.")


def framework_of(file_name: str) -> str:
    """Return the framework that a file's name tells; raises `Invalid` when it tells none."""
    dot = file_name.rfind(".")
    suffix = file_name[dot:].lower() if dot >= 0 else ""
    if suffix not in _BY_SUFFIX:
        raise Invalid(
            f"The file name {file_name!r} does not tell the model's framework: it must end in "
            f"{' or '.join(_BY_SUFFIX)}. Use /v1/api/models/upload_and_convert to name the framework."
        )
    return _BY_SUFFIX[suffix]


def check_target(arch: str, accel: str | dict[str, Any]) -> None:
    """Raise `Invalid` for an architecture or acceleration that is not known, or for two that do not go together."""
    if arch not in _ARCHITECTURES:
        raise Invalid(f"conversion.arch {arch[:80]!r} is not known; choose {', '.join(_ARCHITECTURES)}.")
    name = accel if isinstance(accel, str) else next(iter(accel), "")
    if name not in _ACCELERATIONS or (isinstance(accel, dict) and (name != "qaic" or len(accel) != 1)):
        raise Invalid(
            f"conversion.accel {name[:80]!r} is not known; choose {', '.join(sorted(_ACCELERATIONS))} "
            "(only qaic takes a configuration)."
        )
    if arch not in _ACCELERATIONS[name]:
        raise Invalid(
            f"conversion: acceleration {name!r} needs architecture {' or '.join(_ACCELERATIONS[name])}, not {arch!r}."
        )
