"""The server's settings: environment variables POLYTONE_*, or a YAML file named by POLYTONE_SETTINGS."""

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from polytone.contract.errors import InputError
from polytone.contract.home import Home
from polytone.contract.models import describe_problem

from .traffic.content_policy import Policy

PREFIX = "POLYTONE_"
FILE_VARIABLE = "POLYTONE_SETTINGS"
NO_SETTINGS = {FILE_VARIABLE, "POLYTONE_KEY"}  # read by single commands


class Settings(BaseSettings):
    """Every field can be set as POLYTONE_<FIELD IN CAPITALS>; docs/settings.md lists them."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    home: Path = Field(Path(".polytone"), description="Folder for bases, adapters, runs and the database.")
    base: str = Field("smollm2-135m-instruct", description="Id of the prepared base to serve.")
    host: str = Field("127.0.0.1", description="Address to listen on; without keys only loopback is allowed.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    database_url: str | None = Field(None, description="SQLAlchemy URL of the database; by default SQLite in the home.")
    adapter_store: str | None = Field(
        None,
        description="fsspec URL of the adapter store that all servers share; by default the home holds everything.",
    )
    max_lora_rank: int = Field(16, ge=1, le=512, description="Highest adapter rank that the engine accepts.")
    max_batch_adapters: int = Field(32, ge=1, description="Different versions that can answer in one batch.")
    max_resident_adapters: int = Field(64, ge=1, description="Versions kept in memory at once.")
    max_context: int = Field(2048, ge=64, description="Longest prompt plus answer, in tokens.")
    max_streams: int = Field(32, ge=1, description="Requests the engine works on at once; further ones wait.")
    max_waiting: int = Field(96, ge=0, description="Requests that may wait for the engine; further ones get 429.")
    max_output_tokens: int = Field(
        1024, ge=1, description="Longest answer in tokens, and the default where a request names none."
    )
    max_choices: int = Field(8, ge=1, description="Highest `n` of a request.")
    max_messages: int = Field(500, ge=1, description="Most messages in a request.")
    max_body_bytes: int = Field(2_000_000, ge=1000, description="Largest request body.")
    max_upload_bytes: int = Field(1_000_000_000, ge=1000, description="Largest uploaded adapter, packed and unpacked.")
    answer_seconds: float = Field(600, gt=0, description="Longest time for an answer, waiting included.")
    hang_seconds: float = Field(120, gt=0, description="The engine is rebuilt after this long without a token.")
    start_seconds: float = Field(900, gt=0, description="Longest time the engine may take to start.")
    kv_cache_gib: int = Field(1, ge=1, description="Memory for the attention cache on a CPU, in GiB.")
    cpu_threads: int | None = Field(None, ge=1, description="Threads of the engine on a CPU; by default one per core.")
    cpu_lora: bool = Field(True, description="Run adapters on Polytone's CPU kernels instead of vLLM's own.")
    gpu_memory_share: float = Field(0.85, gt=0, le=1, description="Share of the GPU's memory that the engine may use.")
    drain_seconds: float = Field(
        30, gt=0, description="How long running answers may go on when their version is retired."
    )
    poll_seconds: float = Field(0.5, gt=0, description="How often a server reads the desired state.")
    traffic: bool = Field(True, description="Record answers; without records there is no feedback and no drift.")
    content: Policy = Field(Policy.FULL, description="Texts of answers that are kept: `full`, `hashed` or `none`.")
    content_of: dict[str, Policy] = Field({}, description="The same for single voices, as a JSON object.")
    traffic_queue: int = Field(
        10_000, ge=1, description="Answers that may wait to be written; further ones are not recorded."
    )
    traffic_days: float | None = Field(90, gt=0, description="Days after which answers are deleted; null keeps them.")
    drift: bool = Field(True, description="Measure answers for drift.")
    drift_run_length: float = Field(
        20_000,
        ge=100,
        le=1e6,
        description="Conversations before a detector alarms by chance, on average and at least.",
    )
    drift_quiet_seconds: float = Field(600, ge=0, description="A conversation without an answer for this long is over.")
    origins: list[str] = Field([], description="Origins whose pages may call the API, as a JSON list.")
    tool_parser: str | None = Field(None, description="vLLM's parser for the base's tool calls, such as `hermes`.")
    json_logs: bool = Field(False, description="Write logs as one JSON object a line.")
    page: bool = Field(True, description="Serve the pages under /ui.")

    def paths(self) -> Home:
        return Home(self.home.absolute())

    def database(self) -> str:
        return self.database_url or self.paths().database_url


def read_settings(**overrides: Any) -> Settings:
    """Settings from command line (`overrides`), then environment, then the file POLYTONE_SETTINGS names.

    Raises:
        InputError: `settings_invalid`, naming every bad field and where it came from.
    """
    options = {key: value for key, value in overrides.items() if value is not None}
    from_file = read_file(os.environ.get(FILE_VARIABLE))
    in_environment = {
        key.removeprefix(PREFIX).lower()
        for key, value in os.environ.items()
        if key.startswith(PREFIX) and key not in NO_SETTINGS and value
    }
    unknown = in_environment - set(Settings.model_fields)
    if unknown:
        names = ", ".join(PREFIX + name.upper() for name in sorted(unknown))
        raise InputError(f"{names}: no such setting. See docs/settings.md for all.", code="settings_invalid")
    merged = {key: value for key, value in from_file.items() if key not in in_environment} | options
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        problems = [
            f"{PREFIX}{str(problem['loc'][0]).upper()}: {describe_problem(problem).partition(': ')[2]}"
            for problem in error.errors()
        ]
        raise InputError("\n".join(problems), code="settings_invalid") from None
    require_folder(settings.paths().root)
    return settings


def read_home(home: Path | None = None) -> Home:
    """The home alone, from the same places in the same order as `read_settings`; other settings are not validated.

    Raises:
        InputError: `settings_invalid`.
    """
    chosen = (
        home
        or os.environ.get(f"{PREFIX}HOME")
        or read_file(os.environ.get(FILE_VARIABLE)).get("home")
        or Settings.model_fields["home"].default
    )
    if not isinstance(chosen, str | Path):
        raise InputError(f"{PREFIX}HOME: {chosen!r} is not a path.", code="settings_invalid", param="home")
    root = Path(chosen).absolute()
    require_folder(root)
    return Home(root)


def require_folder(home: Path) -> None:
    """Refuse a home that is, or lies under, something other than a readable folder; it may be missing."""
    try:
        existing = next(path for path in (home, *home.parents) if path.exists() or path.is_symlink())
        if not existing.is_dir():
            raise InputError(
                f"The home {home} cannot be used: {existing} is not a folder. Set --home or {PREFIX}HOME.",
                code="settings_invalid",
                param="home",
            )
        next(existing.iterdir(), None)
    except OSError as error:
        raise InputError(
            f"The home {home} cannot be read: {error.strerror}. Set --home or {PREFIX}HOME.",
            code="settings_invalid",
            param="home",
        ) from None


def read_file(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    path = Path(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} (from {FILE_VARIABLE}): cannot be read: {error}", code="settings_invalid") from None
    if not isinstance(content, dict) or (unknown := set(content) - set(Settings.model_fields)):
        what = ", ".join(map(str, sorted(unknown))) if isinstance(content, dict) else "not a mapping"
        raise InputError(f"{path}: unknown settings: {what}. See docs/settings.md.", code="settings_invalid")
    return content
