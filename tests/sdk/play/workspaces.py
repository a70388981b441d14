"""Users and workspaces."""

from __future__ import annotations

import json
from typing import Any

import requests
from play.stage import Raises, Stage, scenario, since, unless


@scenario()
def the_default_workspace_is_made_once(stage: Stage) -> None:
    first = stage.client(home="ws-1").get_current_workspace()
    second = stage.client(home="ws-2").get_current_workspace()

    assert first.id() == second.id()
    assert not first.archived()
    assert len(first.users()) == 1


@scenario()
def a_workspace_is_created_and_entered(stage: Stage) -> None:
    workspace = stage.workspace()

    assert stage.client().get_current_workspace().id() == workspace.id()
    assert workspace.name() == f"sdk-{stage.tag}"
    assert workspace.models() == []
    assert workspace.pipelines() == []
    assert workspace.created_at()


@scenario()
def a_taken_name_is_refused(stage: Stage) -> None:
    stage.workspace()
    with Raises("Exception"):
        stage.client().create_workspace(f"sdk-{stage.tag}")


@scenario()
def a_name_that_cannot_be_part_of_an_address_is_refused(stage: Stage) -> None:
    for name in ("no blanks", "no/slash", "-dash-first", "ü-ber", "x" * 64, ""):
        with Raises("Exception"):
            stage.client().create_workspace(name)
    made = stage.client().create_workspace(f"UPPER-and-1-{stage.tag}")

    assert made.name() == f"UPPER-and-1-{stage.tag}"
    assert not {"no blanks", "no/slash", "x" * 64} & {w.name() for w in stage.client().list_workspaces()}


@scenario()
def workspaces_are_listed_and_shown(stage: Stage) -> None:
    listed = stage.client().list_workspaces()

    assert f"sdk-{stage.tag}" in [w.name() for w in listed]
    assert f"sdk-{stage.tag}" in listed._repr_html_()


@scenario(unless(since("2024.2"), "came with 2024.2"))
def a_workspace_is_found_by_name(stage: Stage) -> None:
    assert stage.client().get_workspace(f"sdk-{stage.tag}").id() == stage.workspace().id()
    if since("2024.3"):
        made = stage.client().get_workspace(name=f"sdk-{stage.tag}-b", create_if_not_exist=True)
        assert made.name() == f"sdk-{stage.tag}-b"


def _guest(stage: Stage) -> tuple[str, str]:
    return f"guest-{stage.tag}@example.org", "guest-Passw0rd-9"


@scenario()
def a_user_is_invited(stage: Stage) -> None:
    email, password = _guest(stage)
    stage.client().invite_user(email, password)

    assert email in [user.email() for user in stage.client().list_users()]
    assert stage.client().get_user_by_email(email).email() == email


@scenario()
def a_guest_has_a_default_workspace_of_their_own(stage: Stage) -> None:
    guest = stage.client(_guest(stage), home="guest")
    stage.kept["guest"] = guest

    assert guest.get_current_workspace().name() == f"{_guest(stage)[0]} - Default Workspace"
    assert f"sdk-{stage.tag}" not in [w.name() for w in guest.list_workspaces()]


@scenario()
def a_collaborator_sees_the_workspace_until_removed(stage: Stage) -> None:
    email, guest, workspace = _guest(stage)[0], stage.kept["guest"], stage.workspace()

    workspace.add_user(email)
    users: list[Any] = [user.email() for user in workspace.users()]
    seen = [w.name() for w in guest.list_workspaces()]
    workspace.remove_user(email)
    after = [w.name() for w in guest.list_workspaces()]

    assert email in users
    assert workspace.name() in seen
    assert workspace.name() not in after


@scenario()
def a_collaborator_becomes_an_owner(stage: Stage) -> None:
    email, guest, workspace = _guest(stage)[0], stage.kept["guest"], stage.workspace()
    ours = {w.id(): w for w in guest.list_workspaces()}

    workspace.add_owner(email)
    (shared,) = [w for w in guest.list_workspaces() if w.id() not in ours]
    joined = shared.id()
    shared.remove_user(email)

    assert joined == workspace.id()
    assert workspace.name() not in [w.name() for w in guest.list_workspaces()]
    with Raises("Exception"):
        workspace.add_user("nobody-of-this-name@example.org")


@scenario()
def a_guest_may_not_do_what_an_administrator_may(stage: Stage) -> None:
    guest, workspace = stage.kept["guest"], stage.workspace()

    with Raises("Exception"):
        guest.deactivate_user(json.loads(stage.credentials.read_text())["email"])
    with Raises("Exception"):
        type(workspace)(client=guest, data={"id": workspace.id()}).add_user(_guest(stage)[0])
    assert workspace.id() not in [w.id() for w in guest.list_workspaces()]


@scenario()
def a_deactivated_user_is_out_until_activated(stage: Stage) -> None:
    wl, guest = stage.client(), _guest(stage)

    wl.deactivate_user(guest[0])
    with Raises("TokenFetchError"):
        stage.client(guest, home="guest-out").list_workspaces()
    wl.activate_user(guest[0])

    assert stage.client(guest, home="guest-back").list_workspaces()
    with Raises("Exception"):
        wl.deactivate_user("nobody-of-this-name@example.org")


@scenario()
def a_stranger_gets_nothing_of_a_workspace(stage: Stage) -> None:
    guest, workspace = stage.kept["guest"], stage.workspace()

    with Raises("TypeError", "EntityNotFoundError", "Exception"):
        type(workspace)(client=guest, data={"id": workspace.id()}).name()


@scenario()
def the_server_names_itself(stage: Stage) -> None:
    for path in ("/readyz", "/v1/api/config"):
        assert requests.get(f"{stage.url}{path}", timeout=10).status_code == 200
