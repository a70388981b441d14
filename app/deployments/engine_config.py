"""The `engine_config` of a deploy: two spellings in, one out.

Clients send it nested (`engine.replicas`, `engine.resources.limits.cpu`, …), the guide writes it flat (`replica_count`,
`cpus`, …). It is kept and given back nested; what we do not act on is kept as it came.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.deployments.quantities import parse_cpus, parse_memory
from app.errors import Invalid

REPLICAS_LIMIT = 100
ARCHITECTURES = ("x86", "arm", "power10")
ACCELERATIONS = ("none", "cuda", "jetson", "aio", "openvino", "qaic", "rocm")
GPU_KEYS = {"openvino": "gpu.intel.com/i915", "qaic": "qualcomm.com/qaic", "rocm": "amd.com/gpu"}
_GPU_KEY = "nvidia.com/gpu"
_SECTIONS = ("engine", "enginelb", "engineAux")


@dataclass(frozen=True, slots=True)
class Autoscale:
    """Bounds between which the number of replicas follows the load."""

    least: int
    most: int
    cpu_percent: int | None = None
    queue_depth: int | None = None
    window_s: int = 300


@dataclass(frozen=True, slots=True)
class Resources:
    """What one container may use; None where nothing was asked for."""

    cpus: float | None = None
    memory_bytes: int | None = None
    gpus: int = 0
    gpu_key: str = _GPU_KEY


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a normalised `engine_config` asks for, in numbers."""

    replicas: int = 1
    autoscale: Autoscale | None = None
    engine: Resources = Resources()
    balancer: Resources = Resources()
    arch: str | None = None
    accel: str | None = None
    image: str | None = None
    node_selector: dict[str, str] | None = None


def normalise(given: dict[str, Any] | None) -> dict[str, Any]:
    """Return `given` in the nested form, checked; its sections are objects whatever was sent.

    Raises `Invalid` naming the setting that makes no sense.
    """
    given = copy.deepcopy(given or {})
    nested = {key: value for key, value in given.items() if key not in _FLAT}
    for section in _SECTIONS:
        value = nested.get(section)
        if value is not None and not isinstance(value, dict):
            raise Invalid(f"engine_config.{section}: must be an object.")
        nested[section] = value or {}
    images = nested["engineAux"].get("images")
    if images is not None and not isinstance(images, dict):
        raise Invalid("engine_config.engineAux.images: must be an object.")
    nested["engineAux"]["images"] = images or {}
    # Acceleration first: it names the resource under which processors of that kind are counted.
    for key in sorted((key for key in given if key in _FLAT), key=lambda key: key not in ("accel", "sidekick_accel")):
        if given[key] is not None:
            _FLAT[key](nested, given[key])
    interpret(nested)
    return nested


def interpret(nested: dict[str, Any]) -> Wanted:
    """Return the numbers in a normalised `engine_config`; raises `Invalid` for one that makes no sense."""
    engine = nested.get("engine") or {}
    accel = engine.get("accel")
    word = _acceleration(accel, "engine.accel") if accel is not None else None
    arch = engine.get("arch")
    if arch is not None and arch not in ARCHITECTURES:
        raise Invalid(f"engine_config.engine.arch: {arch!r} is unknown; choose one of {', '.join(ARCHITECTURES)}.")
    image = engine.get("image")
    if image is not None and not isinstance(image, str):
        raise Invalid("engine_config.engine.image: must be the name of an image.")
    for name, aux in (nested.get("engineAux") or {}).get("images", {}).items():
        if not isinstance(aux, dict):
            raise Invalid(f"engine_config.engineAux.images.{name}: must be an object.")
        _resources(aux, f"engineAux.images.{name}")
    replicas = engine.get("replicas")
    return Wanted(
        replicas=1 if replicas is None else _count(replicas, "engine.replicas"),
        autoscale=_autoscale(engine.get("autoscale")),
        engine=_resources(engine, "engine", word),
        balancer=_resources(nested.get("enginelb") or {}, "enginelb"),
        arch=arch,
        accel=word,
        image=image,
        node_selector=_selector(engine.get("node_selector")),
    )


def name_images(nested: dict[str, Any], models: dict[str, int]) -> dict[str, Any]:
    """Return `nested` with sidekicks that go by their model alone renamed as clients do: `<model>-<version id>`."""
    nested = copy.deepcopy(nested)
    images = nested["engineAux"]["images"]
    nested["engineAux"]["images"] = {
        (f"{name}-{models[name]}" if name in models else name): value for name, value in images.items()
    }
    return nested


def _resources(section: dict[str, Any], path: str, accel: str | None = None) -> Resources:
    given = section.get("resources") or {}
    if not isinstance(given, dict):
        raise Invalid(f"engine_config.{path}.resources: must be an object.")
    merged: dict[str, Any] = {}
    for kind in ("requests", "limits"):
        values = given.get(kind) or {}
        if not isinstance(values, dict):
            raise Invalid(f"engine_config.{path}.resources.{kind}: must be an object.")
        for key, value in values.items():
            if key == "cpu":
                merged["cpu"] = parse_cpus(value, f"engine_config.{path}.resources.{kind}.cpu")
            elif key == "memory":
                merged["memory"] = parse_memory(value, f"engine_config.{path}.resources.{kind}.memory")
            elif key in (_GPU_KEY, *GPU_KEYS.values()):
                merged["gpus"] = key, _count(value, f"{path}.resources.{kind}.{key}")
    if "cpu" not in merged and section.get("cpu") is not None:
        merged["cpu"] = parse_cpus(section["cpu"], f"engine_config.{path}.cpu")
    gpu_key, gpus = merged.get("gpus", (GPU_KEYS.get(accel or "", _GPU_KEY), _count(section.get("gpu") or 0, "gpu")))
    return Resources(merged.get("cpu"), merged.get("memory"), gpus, gpu_key)


def _autoscale(given: Any) -> Autoscale | None:
    if given is None:
        return None
    if not isinstance(given, dict):
        raise Invalid("engine_config.engine.autoscale: must be an object.")
    if given.get("type", "none") == "none" and "replica_max" not in given:
        return None
    least = _count(given.get("replica_min", 0), "engine.autoscale.replica_min")
    most = _count(given.get("replica_max", max(least, 1)), "engine.autoscale.replica_max")
    if most < max(least, 1):
        raise Invalid(f"engine_config.engine.autoscale: a maximum of {most} replicas is below the minimum of {least}.")
    percent, depth = given.get("cpu_utilization"), given.get("scale_up_queue_depth")
    return Autoscale(
        least,
        most,
        cpu_percent=None if percent is None else _positive(percent, "engine.autoscale.cpu_utilization"),
        queue_depth=None if depth is None else _positive(depth, "engine.autoscale.scale_up_queue_depth"),
        window_s=_positive(given.get("autoscaling_window", 300), "engine.autoscale.autoscaling_window"),
    )


def _selector(given: Any) -> dict[str, str] | None:
    if given in (None, "", {}):
        return None
    if isinstance(given, dict):
        return {str(key): str(value) for key, value in given.items()}
    if isinstance(given, str):
        key, _, value = given.partition(":")
        return {key.strip(): value.strip()}
    raise Invalid('engine_config.engine.node_selector: write it like "key: value".')


def _count(value: Any, path: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 9:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= REPLICAS_LIMIT:
        raise Invalid(f"engine_config.{path}: must be a whole number from 0 to {REPLICAS_LIMIT}, not {value!r}.")
    return value


def _positive(value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1_000_000:
        raise Invalid(f"engine_config.{path}: must be a number above 0, not {value!r}.")
    return int(value)


def _acceleration(value: Any, path: str) -> str:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError as exc:
            raise Invalid(f"engine_config.{path}: is no valid JSON text.") from exc
    if isinstance(value, dict) and len(value) == 1:
        value = next(iter(value))
    if not isinstance(value, str) or value not in ACCELERATIONS:
        raise Invalid(f"engine_config.{path}: {value!r} is unknown; choose one of {', '.join(ACCELERATIONS)}.")
    return value


# The flat spelling.


def _within(section: dict[str, Any], key: str, path: str) -> dict[str, Any]:
    """Return the object under `key`, made if there is none; raises `Invalid` when something else is there."""
    if section.get(key) is None:
        section[key] = {}
    inner = section[key]
    if not isinstance(inner, dict):
        raise Invalid(f"engine_config.{path}.{key}: must be an object.")
    return inner


def _set_resource(section: dict[str, Any], key: str, value: Any, path: str) -> None:
    resources = _within(section, "resources", path)
    for kind in ("limits", "requests"):
        _within(resources, kind, f"{path}.resources")[key] = value


def _cpus(nested: dict[str, Any], value: Any) -> None:
    parse_cpus(value, "engine_config.cpus")
    nested["engine"]["cpu"] = value
    _set_resource(nested["engine"], "cpu", value, "engine")


def _memory(nested: dict[str, Any], value: Any) -> None:
    _set_resource(nested["engine"], "memory", _memory_text(value, "engine_config.memory"), "engine")


def _gpus(nested: dict[str, Any], value: Any) -> None:
    count = _count(value, "gpus")
    nested["engine"]["gpu"] = count
    accel = nested["engine"].get("accel")
    _set_resource(nested["engine"], GPU_KEYS.get(str(accel), _GPU_KEY), count, "engine")


def _replicas(nested: dict[str, Any], value: Any) -> None:
    nested["engine"]["replicas"] = _count(value, "replica_count")


def _bounds(nested: dict[str, Any], value: Any) -> None:
    if not isinstance(value, dict) or "maximum" not in value:
        raise Invalid('engine_config.replica_autoscale_min_max: write it like {"maximum": 2, "minimum": 0}.')
    _within(nested["engine"], "autoscale", "engine").update(
        replica_min=_count(value.get("minimum") or 0, "replica_autoscale_min_max.minimum"),
        replica_max=_count(value["maximum"], "replica_autoscale_min_max.maximum"),
        type="cpu",
    )


def _utilisation(nested: dict[str, Any], value: Any) -> None:
    percent = _positive(value, "autoscale_cpu_utilization")
    _within(nested["engine"], "autoscale", "engine")["cpu_utilization"] = percent


def _no_autoscale(nested: dict[str, Any], value: Any) -> None:
    if value:
        nested["engine"]["autoscale"] = {"type": "none"}


def _balancer_cpus(nested: dict[str, Any], value: Any) -> None:
    parse_cpus(value, "engine_config.lb_cpus")
    _set_resource(nested["enginelb"], "cpu", value, "enginelb")


def _balancer_memory(nested: dict[str, Any], value: Any) -> None:
    _set_resource(nested["enginelb"], "memory", _memory_text(value, "engine_config.lb_memory"), "enginelb")


def _label(nested: dict[str, Any], value: Any) -> None:
    _selector(value)
    nested["engine"]["node_selector"] = value


def _plain(key: str) -> Callable[[dict[str, Any], Any], None]:
    def put(nested: dict[str, Any], value: Any) -> None:
        nested["engine"][key] = value

    return put


def _memory_text(value: Any, name: str) -> str:
    parse_memory(value, name)
    return str(value).strip().removesuffix("B").removesuffix("b")


def _sidekick(name: str, value_key: str, put: Callable[[dict[str, Any], Any], None]) -> Any:
    def read(nested: dict[str, Any], given: Any) -> None:
        for one in given if isinstance(given, list) else [given]:
            if not isinstance(one, dict) or one.get(value_key) is None or not isinstance(one.get("model"), str):
                raise Invalid(f'engine_config.{name}: write it like {{"model": "<name>", "{value_key}": …}}.')
            put(_within(nested["engineAux"]["images"], one["model"], "engineAux.images"), one[value_key])

    return read


def _sidekick_cpus(image: dict[str, Any], value: Any) -> None:
    parse_cpus(value, "engine_config.sidekick_cpus.core_count")
    _set_resource(image, "cpu", value, "engineAux.images")


def _sidekick_memory(image: dict[str, Any], value: Any) -> None:
    text = _memory_text(value, "engine_config.sidekick_memory.memory_spec")
    _set_resource(image, "memory", text, "engineAux.images")


def _sidekick_gpus(image: dict[str, Any], value: Any) -> None:
    accel = GPU_KEYS.get(str(image.get("accel")), _GPU_KEY)
    _set_resource(image, accel, _count(value, "sidekick_gpus.core_count"), "engineAux.images")


def _sidekick_env(image: dict[str, Any], value: Any) -> None:
    if not isinstance(value, dict):
        raise Invalid("engine_config.sidekick_env.environment: must be an object of names and values.")
    image["env"] = [{"name": str(key), "value": str(text)} for key, text in value.items()]


_FLAT: dict[str, Callable[[dict[str, Any], Any], None]] = {
    "cpus": _cpus,
    "memory": _memory,
    "gpus": _gpus,
    "replica_count": _replicas,
    "replica_autoscale_min_max": _bounds,
    "autoscale_cpu_utilization": _utilisation,
    "disable_autoscale": _no_autoscale,
    "lb_cpus": _balancer_cpus,
    "lb_memory": _balancer_memory,
    "deployment_label": _label,
    "arch": _plain("arch"),
    "accel": _plain("accel"),
    "image": _plain("image"),
    "sidekick_cpus": _sidekick("sidekick_cpus", "core_count", _sidekick_cpus),
    "sidekick_memory": _sidekick("sidekick_memory", "memory_spec", _sidekick_memory),
    "sidekick_gpus": _sidekick("sidekick_gpus", "core_count", _sidekick_gpus),
    "sidekick_env": _sidekick("sidekick_env", "environment", _sidekick_env),
    "sidekick_arch": _sidekick("sidekick_arch", "arch", lambda image, value: image.__setitem__("arch", value)),
    "sidekick_accel": _sidekick("sidekick_accel", "accel", lambda image, value: image.__setitem__("accel", value)),
}
