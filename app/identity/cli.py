"""`potoroo users …`, `potoroo clients …`, `potoroo token`."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Column, Table

from app.settings import Settings

users = typer.Typer(name="users", help="Add users, list them, give them a new password.", no_args_is_help=True)
clients = typer.Typer(name="clients", help="Programs that ask for tokens with a secret.", no_args_is_help=True)
console = Console(stderr=True, highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FromStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]

# What the commands do is imported when one runs: `potoroo serve` and `potoroo engine` start without it.


@users.command("create")
def create_user(
    email: Annotated[str, typer.Argument(help="E-mail, also the username.")],
    admin: Annotated[bool, typer.Option("--admin", help="Make an administrator.")] = False,
    password_stdin: FromStdin = False,
    as_json: AsJson = False,
) -> None:
    """Add a user; without a password of your own, a temporary one is made up and printed."""
    _print(_run("create_user", email, _read_password() if password_stdin else None, admin), as_json)


@users.command("reset-password")
def reset_password(
    email: Annotated[str, typer.Argument(help="E-mail or username.")],
    password_stdin: FromStdin = False,
    as_json: AsJson = False,
) -> None:
    """Give a user a new password and end their sessions; one made up here has to be changed at the next login."""
    _print(_run("reset_password", email, _read_password() if password_stdin else None), as_json)


@users.command("list")
def list_users(as_json: AsJson = False) -> None:
    """List all users."""
    rows = _run("list_users")
    if as_json:
        print(json.dumps(rows))  # noqa: T201
        return
    table = Table(*(Column(name, overflow="fold") for name in ("username", "id", "state", "role", "has to")))
    for row in rows:
        state, role = "enabled" if row["enabled"] else "disabled", "admin" if row["is_admin"] else "user"
        table.add_row(row["username"], row["id"], state, role, ", ".join(row["required_actions"]))
    Console().print(table)


@clients.command("create")
def create_client(
    client_id: Annotated[str, typer.Argument(help="Id of the new client.")], as_json: AsJson = False
) -> None:
    """Add a confidential client and print its secret, which is shown this once."""
    _print(_run("create_client", client_id), as_json)


@clients.command("rotate-secret")
def rotate_secret(
    client_id: Annotated[str, typer.Argument(help="Id of the client.")] = "api-client", as_json: AsJson = False
) -> None:
    """Give a confidential client a new secret; the tokens it got for itself end."""
    _print(_run("rotate_secret", client_id), as_json)


@clients.command("list")
def list_clients(as_json: AsJson = False) -> None:
    """List the clients."""
    rows = _run("list_clients")
    if as_json:
        print(json.dumps(rows))  # noqa: T201
        return
    for row in rows:
        kind = "confidential" if row["confidential"] else "public"
        print(row["client_id"], kind, " ".join(row["grants"]), sep="\t")  # noqa: T201


def token(
    username: Annotated[str | None, typer.Option(help="Who signs in; default: the home's creds.json.")] = None,
    password_stdin: FromStdin = False,
    inference: Annotated[bool, typer.Option("--inference", help="A client's own token, for inference alone.")] = False,
    url: Annotated[str | None, typer.Option(help="URL of the server; default: this machine's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print an access token of the running server, for `curl -H "Authorization: Bearer $(potoroo token)"`."""
    import httpx

    from app.identity.bootstrap import CREDENTIALS
    from app.identity.origin import REALM_PATH

    settings = Settings()
    try:
        creds = json.loads((settings.home / CREDENTIALS).read_text())
    except (OSError, ValueError):
        creds = {}
    form = {"grant_type": "client_credentials"}
    if not inference:
        password = _read_password() if password_stdin else creds.get("password", "")
        form = {"grant_type": "password", "username": username or creds.get("username", ""), "password": password}
    auth = None
    if "confidentialClient" in creds:
        auth = (creds["confidentialClient"], creds["confidentialPassword"])
    elif not inference:
        form["client_id"] = "sdk-client"
    else:
        _fail(f"There is no client secret: {settings.home / CREDENTIALS} cannot be read.")
    base = (url or settings.public_url or f"http://{_reachable(settings.host)}:{settings.port}").rstrip("/")
    try:
        answer = httpx.post(f"{base}{REALM_PATH}/protocol/openid-connect/token", data=form, auth=auth, timeout=10)
        given = answer.json()
    except (httpx.HTTPError, ValueError):
        _fail(f"No token endpoint answers at {base}; start the server, or name another with --url.")
    if answer.status_code != 200:
        _fail(f"{base} refuses: {given.get('error_description', answer.status_code)}.")
    print(json.dumps(given) if as_json else given["access_token"])  # noqa: T201


def mount(cli: typer.Typer) -> None:
    """Add these commands to the command line."""
    cli.add_typer(users)
    cli.add_typer(clients)
    cli.command("token")(token)


def _run(name: str, *arguments: object) -> Any:
    """Run a function of `terminal` on this instance's database; a refusal is one line and exit status 1."""
    from app.identity import terminal

    work = getattr(terminal, name)
    try:
        return terminal.run(Settings(), lambda context: work(context, *arguments))
    except terminal.Refused as exc:
        _fail(str(exc))


def _read_password() -> str:
    return sys.stdin.readline().rstrip("\r\n")


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # noqa: S104 - the server listens everywhere; we ask on loopback
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _print(made: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(made))  # noqa: T201
        return
    for name, value in made.items():
        print(f"{name}: {value}")  # noqa: T201


def _fail(text: str) -> NoReturn:
    console.print(f"[red]{text}[/red]")
    raise typer.Exit(1)
