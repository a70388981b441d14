"""Pipelines, their steps and versions: nothing runs yet."""

from __future__ import annotations

from play.stage import Raises, Stage, scenario, since, unless


def _pipeline(stage: Stage, name: str = "pipe") -> object:
    key = f"pipeline-{name}"
    if key not in stage.kept:
        stage.workspace()
        stage.kept[key] = stage.client().build_pipeline(f"{name}-{stage.tag}")
    return stage.kept[key]


def _versions(pipeline: object) -> list[object]:
    return list(pipeline.versions() if since("2023.4") else pipeline.variants())  # type: ignore[attr-defined]


@scenario()
def a_pipeline_is_built_and_shown(stage: Stage) -> None:
    pipeline = _pipeline(stage)

    assert pipeline.name() == f"pipe-{stage.tag}"  # type: ignore[attr-defined]
    assert "pipe-" in pipeline._repr_html_()  # type: ignore[attr-defined]
    assert len(_versions(pipeline)) == 1


@scenario()
def building_again_adds_a_version(stage: Stage) -> None:
    pipeline = _pipeline(stage)
    again = stage.client().build_pipeline(f"pipe-{stage.tag}")

    assert again.id() == pipeline.id()  # type: ignore[attr-defined]
    assert len(_versions(again)) == 2


@scenario()
def pipelines_are_listed_and_found(stage: Stage) -> None:
    wl, pipeline = stage.client(), _pipeline(stage)

    assert pipeline.id() in [p.id() for p in wl.list_pipelines()]  # type: ignore[attr-defined]
    assert f"pipe-{stage.tag}" in wl.list_pipelines()._repr_html_()
    assert wl.pipelines_by_name(f"pipe-{stage.tag}")[0].id() == pipeline.id()  # type: ignore[attr-defined]
    assert pipeline.id() in [p.id() for p in stage.workspace().pipelines()]  # type: ignore[attr-defined]
    with Raises("EntityNotFoundError"):
        wl.pipelines_by_name("no-such-pipeline")


@scenario(unless(since("2024.1"), "came with 2024.1"))
def a_pipeline_is_found_by_name(stage: Stage) -> None:
    assert stage.client().get_pipeline(f"pipe-{stage.tag}").id() == _pipeline(stage).id()  # type: ignore[attr-defined]
    with Raises("Exception", text="not found"):
        stage.client().get_pipeline("no-such-pipeline")


@scenario()
def pipelines_are_searched_by_name_and_tag(stage: Stage) -> None:
    wl, pipeline = stage.client(), _pipeline(stage)
    tag = wl.create_tag(f"pipe-tag-{stage.tag}")
    tag.add_to_pipeline(pipeline.id())  # type: ignore[attr-defined]

    by_tag = wl.search_pipelines(tag.tag())
    by_name = wl.search_pipelines(f"pipe-{stage.tag}")
    tagged = tag.list_pipelines()
    tag.remove_from_pipeline(pipeline.id())  # type: ignore[attr-defined]

    assert by_tag
    assert by_name
    assert by_tag._repr_html_()
    assert [p.id() for p in tagged] == [pipeline.id()]  # type: ignore[attr-defined]
    assert list(wl.search_pipelines(tag.tag())) == []
    assert list(wl.search_pipelines(f"pipe-{stage.tag}", deployed=True)) == []


@scenario()
def every_step_can_be_built(stage: Stage) -> None:
    one, two = stage.model(), stage.model("fraud-b")
    pipeline = stage.client().build_pipeline(f"steps-{stage.tag}")

    pipeline.add_model_step(one)
    pipeline.add_key_split(one, "country", {"fr": two})
    pipeline.add_random_split([(0.25, one), (0.75, two)], hash_key="user")
    pipeline.add_shadow_deploy(one, [two])
    pipeline.add_select(0)
    pipeline.add_audit("0:1")
    pipeline.replace_with_model_step(0, two)
    kinds = str([step.to_json() for step in pipeline.steps()])
    for kind in ("ModelInference", "MetaValueSplit", "RandomSplit", "AuditResults", "Nth"):
        assert kind in kinds, kinds
    count = len(pipeline.steps())
    pipeline.remove_step(count - 1)
    assert len(pipeline.steps()) == count - 1
    pipeline.clear()
    assert len(pipeline.steps()) == 0, pipeline.steps()


@scenario()
def every_step_can_take_another_s_place(stage: Stage) -> None:
    one, two = stage.model(), stage.model("fraud-b")
    pipeline = stage.client().build_pipeline(f"steps-{stage.tag}").add_model_step(one)
    changes = {
        "MetaValueSplit": lambda: pipeline.replace_with_key_split(0, one, "country", {"fr": two}),
        "RandomSplit": lambda: pipeline.replace_with_random_split(0, [(0.25, one), (0.75, two)]),
        "AuditResults": lambda: pipeline.replace_with_audit(0, "0:1"),
        "Nth": lambda: pipeline.replace_with_select(0, 1),
        "ModelInference": lambda: pipeline.replace_with_multi_model_step(0, [one, two]),
    }

    for kind, change in changes.items():
        change()
        assert [list(step.to_json()) for step in pipeline.steps()] == [[kind]]
    assert len(pipeline.model_configs()) == 2
    assert one.version() in str(pipeline.steps()[0].to_json())


@scenario()
def a_pipeline_s_configuration_is_read_back(stage: Stage) -> None:
    pipeline = stage.client().build_pipeline(f"conf-{stage.tag}").add_model_step(stage.model())
    pipeline._upload()
    read = pipeline.get_pipeline_configuration()

    assert read["pipeline_id"] == f"conf-{stage.tag}" or f"conf-{stage.tag}" in str(read)
    assert stage.model().sha() in str(read)
    with Raises("Exception"):
        pipeline.get_pipeline_configuration(version="00000000-0000-4000-8000-000000000000")


@scenario()
def a_bad_name_is_refused(stage: Stage) -> None:
    for name in ("no blanks", "UPPER", "under_score", "-dash"):
        with Raises("Exception"):
            stage.client().build_pipeline(name)
    assert not {"no blanks", "UPPER", "under_score", "-dash"} & {p.name() for p in stage.client().list_pipelines()}


@scenario()
def a_stranger_does_not_find_a_pipeline(stage: Stage) -> None:
    guest, name = stage.guest(), f"pipe-{stage.tag}"

    assert name not in [p.name() for p in guest.list_pipelines()]
    assert list(guest.search_pipelines(name)) == []
    with Raises("EntityNotFoundError"):
        guest.pipelines_by_name(name)
    with Raises("Exception"):
        type(_pipeline(stage))(client=guest, data={"id": _pipeline(stage).id()}).name()  # type: ignore[call-arg,attr-defined]


@scenario(unless(since("2023.4.2"), "its validations are the older ones"))
def validations_become_a_step(stage: Stage) -> None:
    import polars as pl

    pipeline = stage.client().build_pipeline(f"valid-{stage.tag}")
    pipeline.add_model_step(stage.model())
    pipeline.add_validations(fraud=pl.col("out.probabilities").list.get(1) < 0.9)

    assert "CheckStep" in str([s.to_json() for s in pipeline.steps()]) or len(pipeline.steps()) == 2


@scenario(unless(not since("2023.4"), "gave way to polars expressions"))
def older_validations_become_a_step(stage: Stage) -> None:
    model = stage.model()
    pipeline = stage.client().build_pipeline(f"valid-{stage.tag}")
    pipeline.add_model_step(model)
    pipeline.add_validation("sure", model.outputs[0][1] < 0.9)

    assert len(pipeline.steps()) == 2


@scenario(unless(since("2023.4"), "came with 2023.4"))
def a_version_is_created_without_deploying(stage: Stage) -> None:
    pipeline = stage.client().build_pipeline(f"made-{stage.tag}").add_model_step(stage.model())

    version = pipeline.create_version()

    assert version.name()
    assert version.id() == stage.client().pipelines_by_name(f"made-{stage.tag}")[0].versions()[0].id()
