"""Models, versions and tags."""

from __future__ import annotations

from pathlib import Path

import gql
from play.stage import Raises, Stage, scenario, since, unless


@scenario()
def an_onnx_model_is_uploaded(stage: Stage) -> None:
    version = stage.model()

    assert version.name() == "fraud"
    assert str(version.status()).lower().endswith("ready")
    assert len(version.sha()) == 64
    assert version.file_name() == "fraud.onnx"
    assert version.last_update_time() is not None
    assert version._repr_html_()


@scenario()
def models_are_listed_and_shown(stage: Stage) -> None:
    listed = stage.client().list_models()

    assert "fraud" in [m.name() for m in listed]
    assert "fraud" in listed._repr_html_()
    assert "fraud" in [m.name() for m in stage.workspace().models()]


@scenario()
def a_second_version_is_added(stage: Stage) -> None:
    first = stage.model()
    second = stage.upload("fraud")

    assert second.id() != first.id()
    assert second.version() != first.version()
    (model,) = [m for m in stage.workspace().models() if m.name() == "fraud"]
    versions = model.versions()
    ids = [v.id() for v in versions]
    assert {first.id(), second.id()} <= set(ids)
    newest = ids[0] if since("2025.1") else ids[-1]
    assert newest == second.id()
    stage.kept["second"] = second


@scenario(unless(since("2024.1"), "came with 2024.1"))
def a_model_is_found_by_name(stage: Stage) -> None:
    found = stage.client().get_model("fraud")

    assert found.id() == stage.kept["second"].id()
    assert stage.client().get_model("fraud", version=stage.model().version()).id() == stage.model().id()
    with Raises("Exception", text="does not exist"):
        stage.client().get_model("nothing-of-this-name")


@scenario()
def a_version_is_found_by_name_and_version(stage: Stage) -> None:
    find = stage.client().model_version_by_name if since("2023.4") else stage.client().model_by_name

    assert find("fraud", stage.model().version()).id() == stage.model().id()
    with Raises("EntityNotFoundError"):
        find("fraud", "no-such-version")


@scenario()
def a_version_is_configured(stage: Stage) -> None:
    configured = stage.model().configure(tensor_fields=[stage.sample["input"]])
    config = configured.config()

    assert config.runtime() == "onnx"
    assert config.tensor_fields() == [stage.sample["input"]]


@scenario()
def a_file_that_is_no_model_ends_in_error(stage: Stage) -> None:
    from wallaroo.framework import Framework

    broken = Path(stage.folder) / "broken.onnx"
    broken.write_bytes(b"this is no model")
    with Raises("Exception"):
        made = stage.client().upload_model("broken", str(broken), framework=Framework.ONNX)
        assert str(made.status()).lower().endswith("ready"), f"status is {made.status()}"


@scenario()
def tags_live_on_models(stage: Stage) -> None:
    wl, version = stage.client(), stage.model()
    tag = wl.create_tag(f"tag-{stage.tag}")
    listed = lambda: [t.tag() for t in wl.list_tags()]  # noqa: E731

    assert tag.tag() not in listed()
    tag.add_to_model(version.id())
    assert tag.tag() in listed()
    assert tag.tag() in wl.list_tags()._repr_html_()
    assert tag.tag() in [t.tag() for t in type(version)(client=wl, data={"id": version.id()}).tags()]
    found = tag.list_model_versions() if since("2023.4") else tag.list_models()
    assert [m.id() for m in found] == [version.id()]
    assert [m.id() for m in wl.search_models(search_term=tag.tag())] == [version.id()]
    tag.remove_from_model(version.id())
    assert tag.tag() not in listed()
    with Raises("IndexError"):
        tag.remove_from_model(version.id())


@scenario()
def models_are_searched(stage: Stage) -> None:
    wl, version = stage.client(), stage.model()

    assert version.id() in [m.id() for m in wl.search_models("FRAUD")]
    assert version.id() in [m.id() for m in wl.search_models()]
    assert [m.id() for m in wl.search_models(version.version())] == [version.id()]
    assert list(wl.search_models("no-such-model-anywhere")) == []
    assert wl.search_models("fraud")._repr_html_()


@scenario(unless(since("2024.2"), "the filter came with 2024.2"))
def models_are_searched_in_a_workspace(stage: Stage) -> None:
    import datetime

    wl, workspace = stage.client(), stage.workspace()
    past = datetime.datetime(2022, 1, 1, tzinfo=datetime.UTC)
    future = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)

    assert stage.model().id() in [m.id() for m in wl.search_models("fraud", workspace_id=workspace.id())]
    assert list(wl.search_models("fraud", workspace_name="elsewhere")) == []
    if since("2024.4"):  # older ones cannot put times into JSON
        assert list(wl.search_models("fraud", uploaded_time_start=past, uploaded_time_end=future))


@scenario()
def visibility_is_changed(stage: Stage) -> None:
    from wallaroo.visibility import _Visibility

    wl, version = stage.client(), stage.model()
    look = gql.gql("query($id: bigint!) { model_by_pk(id: $id) { visibility } }")
    seen = lambda: wl._gql_client.execute(look, variable_values={"id": version.id()})["model_by_pk"]["visibility"]  # noqa: E731

    version._update_visibility(_Visibility.PUBLIC)
    public = seen()
    version._update_visibility(_Visibility.PRIVATE)

    assert (public, seen()) == ("public", "private")


@scenario()
def an_upload_that_makes_no_sense_is_refused(stage: Stage) -> None:
    from wallaroo.framework import Framework

    wl, file = stage.client(), str(stage.example("fraud.onnx"))

    with Raises("Exception"):
        wl.upload_model("no blanks", file, framework=Framework.ONNX)
    with Raises("Exception"):
        wl.upload_model("nothing", str(Path(stage.folder) / "nothing.onnx"), framework=Framework.ONNX)
    with Raises("Exception"):
        wl.upload_model("no-framework", file, framework="no-such-framework")
    names = [m.name() for m in wl.list_models()]
    assert not {"no blanks", "nothing", "no-framework"} & set(names)


@scenario()
def a_configuration_that_makes_no_sense_is_refused(stage: Stage) -> None:
    with Raises("Exception"):
        stage.model().configure(tensor_fields="tensor")
    with Raises("Exception"):
        stage.model().configure(tensor_fields=["one", "two", "three"])
        stage.deployed("two-many", lambda p: p.add_model_step(stage.model()))


@scenario()
def a_stranger_neither_finds_nor_uses_a_model(stage: Stage) -> None:
    version, guest = stage.model(), stage.guest()
    find = guest.model_version_by_name if since("2023.4") else guest.model_by_name

    assert version.id() not in [m.id() for m in guest.search_models(version.version())]
    assert version.name() not in [m.name() for m in guest.list_models()]
    with Raises("EntityNotFoundError"):
        find(version.name(), version.version())
    with Raises("Exception"):
        guest.build_pipeline(f"theft-{stage.tag}").add_model_step(version).deploy(
            deployment_config=stage.deployment_config()
        )
    assert f"theft-{stage.tag}" not in [d.name() for d in stage.client().list_deployments() if d.deployed()]
