"""What scenarios stand on. Everything in this folder runs inside the environment of a release of the vendor's SDK."""

from __future__ import annotations

import importlib.metadata
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import wallaroo

Version = tuple[int, ...]


def _version(text: str) -> Version:
    return tuple(int(part) for part in text.split("."))


RELEASE = _version(importlib.metadata.version("wallaroo"))


def since(release: str) -> bool:
    """Tell whether this is the release `release` or a later one."""
    return _version(release) <= RELEASE


@dataclass
class Stage:
    """A server, the people on it, and what earlier scenarios left for later ones."""

    url: str
    credentials: Path
    folder: Path
    tag: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    kept: dict[str, Any] = field(default_factory=dict)

    def client(self, who: tuple[str, str] | None = None, home: str = "", **options: Any) -> Any:
        """Return a client that signs in as `who`, or as the administrator, with a cache of tokens of its own."""
        if home == "" and who is None and "client" in self.kept:
            return self.kept["client"]
        self.enter(home or f"home-{who[0] if who else 'admin'}-{uuid.uuid4().hex[:6]}")
        given = json.loads(self.credentials.read_text())
        os.environ["WALLAROO_USER"], os.environ["WALLAROO_PASSWORD"] = who or (given["username"], given["password"])
        made = wallaroo.Client(**{"auth_type": "user_password", "request_timeout": 60, **self.endpoints, **options})
        if who is None and home == "":
            self.kept["client"] = made
        return made

    @property
    def endpoints(self) -> dict[str, str]:
        """Return where a client finds the server: old ones want to be told twice."""
        return {"api_endpoint": self.url} | ({} if since("2024.2") else {"auth_endpoint": self.url})

    def enter(self, home: str) -> None:
        """Give the SDK's cache of tokens a folder of its own."""
        folder = self.folder / home
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["HOME"] = str(folder)
        os.environ.pop("XDG_CACHE_HOME", None)

    def workspace(self) -> Any:
        """Return this run's workspace, made and entered at the first call."""
        wl = self.client()
        if "workspace" not in self.kept:
            self.kept["workspace"] = wl.create_workspace(f"sdk-{self.tag}")
        wl.set_current_workspace(self.kept["workspace"])
        return self.kept["workspace"]

    def guest(self) -> Any:
        """Return a client of somebody who is in no workspace but their own, invited at the first call."""
        if "guest" not in self.kept:
            who = f"stranger-{self.tag}@example.org", "stranger-Passw0rd-9"
            self.client().invite_user(*who)
            self.kept["guest"] = self.client(who, home="stranger")
        return self.kept["guest"]

    def model(self, name: str = "fraud") -> Any:
        """Return a version of the example model, uploaded at the first call."""
        key = f"model-{name}"
        if key not in self.kept:
            self.workspace()
            self.kept[key] = self.upload(name)
        return self.kept[key]

    def upload(self, name: str, file: Path | None = None) -> Any:
        """Upload the example model, or another one that takes the same input, as a new version."""
        from wallaroo.framework import Framework

        path = file or self.example("fraud.onnx")
        made = self.client().upload_model(name, str(path), framework=Framework.ONNX)
        if not since("2024.2"):
            made = made.configure(tensor_fields=[self.sample["input"]])
        return made

    @property
    def models(self) -> Path:
        """Return the folder of made models."""
        return Path(os.environ["PLAY_MODELS"])

    def variant(self, name: str, file: str) -> Any:
        """Return a version of the made model `file` under the name `name`, uploaded at the first call."""
        key = f"model-{name}"
        if key not in self.kept:
            self.workspace()
            self.kept[key] = self.upload(name, self.models / f"{file}.onnx")
        return self.kept[key]

    def example(self, name: str) -> Path:
        """Return a file of the examples."""
        return Path(os.environ["PLAY_EXAMPLES"]) / name

    @property
    def sample(self) -> dict[str, Any]:
        """Return the example's input and the answers it should get."""
        loaded: dict[str, Any] = json.loads(self.example("fraud_sample.json").read_text())
        return loaded

    def frame(self, rows: int = 4) -> pd.DataFrame:
        """Return some rows of the example."""
        return pd.DataFrame({self.sample["input"]: self.sample["rows"][:rows]})

    def deployed(self, name: str, build: Callable[[Any], Any], config: Any = None) -> Any:
        """Return a pipeline that runs with the steps that `build` adds."""
        self.workspace()
        pipeline = build(self.client().build_pipeline(f"{name}-{self.tag}"))
        pipeline.deploy(deployment_config=config or self.deployment_config())
        return pipeline

    def deployment_config(self) -> Any:
        """Return a small deployment."""
        from wallaroo.deployment_config import DeploymentConfigBuilder

        return DeploymentConfigBuilder().replica_count(1).cpus(0.25).memory("256Mi").build()


def probabilities(answer: Any) -> Any:
    """Return the probabilities of fraud, whichever form the answer has."""
    if isinstance(answer, pa.Table):
        answer = answer.to_pandas()
    return np.array([row[-1] for row in answer["out.probabilities"]], dtype=np.float32)


def until(look: Callable[[], bool], what: str, patience_s: float = 60) -> None:
    """Wait until `look` is true."""
    end = time.monotonic() + patience_s
    while not look():
        assert time.monotonic() < end, f"not within {patience_s} s: {what}"
        time.sleep(0.3)


Scenario = Callable[[Stage], None]
_REGISTERED: list[tuple[str, Scenario, str]] = []


def scenario(absent: str = "") -> Callable[[Scenario], Scenario]:
    """Register a scenario; with `absent`, the reason why this release cannot play it."""

    def register(function: Scenario) -> Scenario:
        _REGISTERED.append((function.__name__, function, absent))
        return function

    return register


def unless(possible: bool, reason: str) -> str:
    """Return `reason` unless this release can."""
    return "" if possible else reason


def play() -> list[dict[str, Any]]:
    """Play the registered scenarios in their order; one that fails does not stop the others."""
    results = []
    with tempfile.TemporaryDirectory(prefix="potoroo-play-") as folder:
        stage = Stage(os.environ["PLAY_URL"], Path(os.environ["PLAY_CREDENTIALS"]), Path(folder))
        for name, function, absent in _REGISTERED:
            started = time.monotonic()
            outcome, reason = ("absent", absent) if absent else ("ok", "")
            if not absent:
                try:
                    function(stage)
                except BaseException as exc:
                    outcome, reason = "failed", f"{type(exc).__name__}: {exc}"[:1500] + _where(exc)
            results.append(
                {"scenario": name, "outcome": outcome, "reason": reason, "s": round(time.monotonic() - started, 2)}
            )
    return results


def _where(exc: BaseException) -> str:
    trace, places = exc.__traceback__, []
    while trace is not None:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " @ " + " > ".join(places[-5:])


class Raises:
    """Expects an error of one of the kinds, by name, whose text holds a word."""

    def __init__(self, *kinds: str, text: str = "") -> None:
        self.kinds, self.text = kinds, text

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, exc: Any, trace: Any) -> bool:
        assert kind is not None, f"nothing was raised; {self.kinds} was expected"
        names = {base.__name__ for base in kind.__mro__}
        assert names & set(self.kinds), f"{kind.__name__}: {exc}"
        assert self.text.lower() in str(exc).lower(), f"{self.text!r} is not in: {exc}"
        return True
