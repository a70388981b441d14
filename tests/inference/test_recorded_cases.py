"""What the vendor's platform answered, asked again of a whole server by its external URL, in JSON and in Arrow."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from engine.contract.codecs import decode_records
from tests.engine.core.making import ARROW, RECORDS, SDK_QUERY, arrow_bytes
from tests.engine.core.vendor import VALIDATIONS, cases, check, config
from tests.inference.instance import Deployed, Instance, running

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.vendor_data]


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    """A server for the tests of this file."""
    with tempfile.TemporaryDirectory(prefix="potoroo-") as folder:
        yield from running(Path(folder) / "home")


class Catalogue:
    """Uploads each model and deploys each pipeline of the cases once."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._deployed: dict[str, Deployed] = {}

    def model(self, folder: Path, entry: dict[str, Any], name: str) -> dict[str, Any]:
        model = self.instance.upload(name, (folder / entry["file"]).read_bytes())
        return self.instance.configure(model, **{key: value for key, value in config(entry).items() if value})

    def deployed(self, folder: Path, case: dict[str, Any]) -> Deployed:
        described = case.get("steps") or [case["model"]]
        shadows = case.get("shadow") or []
        key = json.dumps([folder.name, described, shadows, case.get("validations")])
        if key in self._deployed:
            return self._deployed[key]
        models = [self.model(folder, entry, f"m{number}") for number, entry in enumerate(described)]
        steps: list[dict[str, Any]] = [{"ModelInference": {"models": [model]}} for model in models]
        if shadows:
            challengers = [self.model(folder, entry, entry["name"]) for entry in shadows]
            steps = [
                {"ModelInference": {"models": models + challengers}},
                {"AuditResults": {"from": 1, "to": None}},
                {"MultiOut": {}},
            ]
        for name, text in (case.get("validations") or {}).items():
            steps.append({"Check": {"tree": [VALIDATIONS[text].replace("%s", name)]}})
        made = self.instance.deploy_steps(f"{folder.name}-{len(self._deployed)}", steps)
        self._deployed[key] = made
        return made


def test_every_recorded_case_gives_the_recorded_numbers_through_the_door(instance: Instance, vendor_data: Path) -> None:
    catalogue = Catalogue(instance)
    found = cases(vendor_data)

    assert len(found) > 20
    for folder, case in found:
        deployed = catalogue.deployed(vendor_data / folder, case)
        body = (vendor_data / folder / case["input"]["file"]).read_bytes()
        if case["input"]["format"] == "arrow-file":
            table = pa.ipc.open_file(body).read_all()
            bodies = {ARROW: body, RECORDS: json.dumps(table.to_pylist()).encode()}
        else:
            bodies = {ARROW: arrow_bytes(decode_records(body)), RECORDS: body}
        for kind, sent in bodies.items():
            for accept in ("*/*", ARROW):
                answer = httpx.post(
                    f"{deployed.url}?{SDK_QUERY}",
                    content=sent,
                    headers=instance.headers | {"Content-Type": kind, "Accept": accept},
                    timeout=60,
                )
                assert answer.status_code == 200, (case["id"], kind, accept, answer.text)
                if accept == ARROW:
                    shown = pa.ipc.open_file(answer.content).read_all()
                    columns, count = shown.to_pydict(), shown.num_rows
                else:
                    rows = answer.json()
                    columns, count = {name: [row[name] for row in rows] for name in rows[0]}, len(rows)
                check(columns, count, case)


@pytest.fixture(scope="module")
def houses(instance: Instance, vendor_data: Path) -> dict[str, dict[str, Any]]:
    """The house-price models: a control and two challengers."""
    files = {"control": "rf_model.onnx", "challenger-01": "xgb_model.onnx", "challenger-02": "gbr_model.onnx"}
    made = {}
    for name, file in files.items():
        model = instance.upload(f"house-{name}", (vendor_data / "houseprice" / file).read_bytes())
        made[name] = instance.configure(model, tensor_fields=["tensor"])
    return made


def ask(instance: Instance, url: str, folder: Path, file: str) -> list[dict[str, Any]]:
    answer = httpx.post(
        f"{url}?{SDK_QUERY}",
        content=(folder / file).read_bytes(),
        headers=instance.headers | {"Content-Type": RECORDS},
        timeout=60,
    )
    rows: list[dict[str, Any]] = answer.raise_for_status().json()
    return rows


def prices(folder: Path, file: str) -> dict[str, float]:
    """Return what each house-price model alone says of one recorded house."""
    recorded = json.loads((folder / "cases.json").read_text())["cases"]
    return {
        case["model"]["file"]: next(iter(case["expected"]["columns"].values()))[0][0]
        for case in recorded
        if case["input"]["file"] == file
    }


def test_a_shadow_deployment_of_house_prices_answers_and_logs_all_three(
    instance: Instance, vendor_data: Path, houses: dict[str, dict[str, Any]]
) -> None:
    folder = vendor_data / "houseprice"
    deployed = instance.deploy_steps(
        "houses-shadow",
        [
            {"ModelInference": {"models": list(houses.values())}},
            {"AuditResults": {"from": 1, "to": None}},
            {"MultiOut": {}},
        ],
    )

    (row,) = ask(instance, deployed.url, folder, "normal_input.df.json")

    wanted = prices(folder, "normal_input.df.json")
    assert row["out.variable"] == pytest.approx([wanted["rf_model.onnx"]], rel=1e-6)
    assert row["out_house-challenger-01.variable"] == pytest.approx([wanted["xgb_model.onnx"]], rel=1e-6)
    assert row["out_house-challenger-02.variable"] == pytest.approx([wanted["gbr_model.onnx"]], rel=1e-6)
    topic = f"workspace-{instance.workspace}-pipeline-houses-shadow-inference"
    logged = httpx.post(
        f"{instance.base}/v1/logs/topic/{topic}/records?dataset[]=*&dataset.separator=.",
        headers=instance.headers | {"Accept": RECORDS},
        json={},
    ).json()
    assert {name: logged[-1][name] for name in row} == row


def test_an_a_b_test_of_house_prices_says_who_answered(
    instance: Instance, vendor_data: Path, houses: dict[str, dict[str, Any]]
) -> None:
    folder = vendor_data / "houseprice"
    control, challenger = houses["control"], houses["challenger-01"]
    weights = [{"model": control, "weight": 2}, {"model": challenger, "weight": 1}]
    deployed = instance.deploy_steps("houses-ab", [{"RandomSplit": {"hash_key": None, "weights": weights}}])
    wanted = prices(folder, "normal_input.df.json")
    alone = {control["name"]: wanted["rf_model.onnx"], challenger["name"]: wanted["xgb_model.onnx"]}

    answered = [ask(instance, deployed.url, folder, "normal_input.df.json")[0] for _ in range(150)]

    told = [json.loads(row["out._model_split"][0])["model_version"]["name"] for row in answered]
    for name, row in zip(told, answered, strict=True):
        assert row["out.variable"] == pytest.approx([alone[name]], rel=1e-6)
    # With a chance of two thirds, 150 draws lie outside of this about once in a million runs.
    assert 70 <= told.count(control["name"]) <= 128
