"""polytone backup and restore. Heavy libraries are imported when a command runs: --help is instant."""

import json
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal

from polytone.progress import Progress
from polytone.serve.settings import Settings, read_settings

from .exit_codes import ExitCode
from .options import HomeOption, JsonOption
from .state import open_store

if TYPE_CHECKING:
    from polytone.serve.backup.dump import DatabaseDumper
    from polytone.serve.backup.manifest import Backup
    from polytone.serve.backup.restoring import Restored
    from polytone.serve.backup.taking import Taken

FolderArgument = Annotated[Path, typer.Argument(help="Folder of the backup, on another disk than the home.")]
COUNTED = {"traffic": "answers", "feedback": "feedback", "conversations": "conversations", "keys": "keys"}


def backup(
    folder: FolderArgument,
    with_bases: Annotated[
        bool, typer.Option("--bases/--no-bases", help="Copy the bases' weights too; they can be prepared again.")
    ] = True,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Save the database, every version, evaluations and bases into FOLDER. Servers may run meanwhile.

    Everything that was acknowledged before the command began is in it. Into the same FOLDER again, only what is new is
    copied, and the backup before stands until this one is complete. The database holds conversations and hashes of
    keys: FOLDER and its files are for their owner alone.

    PostgreSQL (POLYTONE_DATABASE_URL) is saved by pg_dump, which has to be installed.

    Exit code 1 if a published version could not be saved; everything else is saved then. docs/backup.md has more: how
    often, restoring step by step, rehearsing.
    """
    settings = read_settings(home=home)
    from polytone.serve.backup.taking import back_up

    with Progress(Console(stderr=True, soft_wrap=True), brief=True) as progress:
        taken = back_up(
            settings.paths(), database_in(settings), open_store(settings), folder, with_bases, progress.report_bytes
        )
    print(
        json.dumps(as_document(taken.backup, folder, new=list(taken.new))) if as_json else backup_words(taken, folder)
    )
    if taken.lacking:
        raise typer.Exit(ExitCode.FAILED)


def restore(
    folder: FolderArgument,
    check: Annotated[
        bool, typer.Option("--check", help="Read the whole backup and compare, and write nothing.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring the backup in FOLDER back, into an empty home and an empty database.

    Everything is checked against its checksums before anything is put in place. Whatever else is there is not touched:
    the command refuses and says what is in the way. If it is cut off, run it again. A backup of an older Polytone is
    brought up to date.

    With POLYTONE_ADAPTER_STORE, the store gets the versions that it lacks.
    """
    settings = read_settings(home=home)
    from polytone.serve.backup.checking import check_backup
    from polytone.serve.backup.restoring import restore as bring_back

    if check:
        with Progress(Console(stderr=True, soft_wrap=True), brief=True) as progress:
            found = check_backup(folder, progress.report_bytes)
        words = f"{summary(found)}\nThe backup in {folder} is whole. {moment(found)}"
        print(json.dumps(as_document(found, folder, whole=True)) if as_json else words)
        return
    with Progress(Console(stderr=True, soft_wrap=True), brief=True) as progress:
        done = bring_back(folder, settings.paths(), database_in(settings), open_store(settings), progress.report_bytes)
    missing = [base.model_dump(mode="json", include={"id", "source", "digest"}) for base in done.missing]
    document = as_document(done.backup, folder, home=str(settings.paths().root), bases_to_prepare=missing)
    print(json.dumps(document) if as_json else restore_words(done, folder, settings))


def database_in(settings: Settings) -> "DatabaseDumper":
    from polytone.serve.backup.databases import dumper_for

    return dumper_for(settings.database())


def as_document(backup: "Backup", folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "created": backup.created.isoformat(),
        "polytone": backup.polytone,
        "bytes": backup.bytes,
        "database": backup.database.model_dump(include={"kind", "revision", "bytes", "rows"}),
        "versions": list(backup.versions),
        "bases": {name: base.weights is not None for name, base in backup.bases.items()},
        "left_out": backup.left_out,
        **more,
    }


def summary(backup: "Backup") -> str:
    rows = ", ".join(f"{backup.database.rows.get(table, 0)} {word}" for table, word in COUNTED.items())
    bases = ", ".join(
        name if base.weights is not None else f"{name} (not its weights)" for name, base in backup.bases.items()
    )
    lines = [
        f"database: {backup.database.kind}, {decimal(backup.database.bytes)} ({rows})",
        f"versions: {len(backup.versions)}",
        f"bases: {bases or 'none'}",
    ]
    return "\n".join(lines + [f"left out: {name}: {reason}" for name, reason in backup.left_out.items()])


def moment(backup: "Backup") -> str:
    return f"It has everything that was acknowledged before {backup.created:%Y-%m-%d %H:%M:%S} UTC."


def backup_words(taken: "Taken", folder: Path) -> str:
    lines = [
        summary(taken.backup).replace("versions: ", f"versions: {len(taken.new)} new, in all ", 1),
        f"The backup in {folder} is complete ({decimal(taken.backup.bytes)}). {moment(taken.backup)}",
    ]
    if taken.lacking:
        lines.append(
            f"It lacks {', '.join(taken.lacking)}: copy them into the home from where they were made and do it again."
        )
    return "\n".join([*lines, f"Read it back now and then: polytone restore {folder} --check"])


def restore_words(done: "Restored", folder: Path, settings: Settings) -> str:
    lines = [
        summary(done.backup),
        f"{folder} is restored into {settings.paths().root}. {moment(done.backup)}",
        "Keys that were revoked and conversations that were forgotten later are back: revoke and forget them again.",
    ]
    lines += [
        f"Prepare the base {base.id} again, which was made of: {base.source}. `polytone base prepare` has to say the "
        f"digest {base.digest[:12]}."
        for base in done.missing
    ]
    return "\n".join([*lines, f"Then start the server: {serve_command(settings)}"])


def serve_command(settings: Settings) -> str:
    """The command that serves the restored home; with --home it is not the one that `polytone serve` would take."""
    root = settings.paths().root
    return (
        "polytone serve" if root == read_settings().paths().root else f"POLYTONE_HOME={quote(str(root))} polytone serve"
    )
