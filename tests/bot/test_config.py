"""bot/config.py: one file, one environment, every fault at once."""

import os
import re
import stat
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from bot import config
from bot.errors import ConfigError
from bot.prompt import FORMATS

SHIPPED = Path(__file__).resolve().parents[2] / "bot.toml"
SECTIONS = {name: field.annotation for name, field in config.Settings.model_fields.items()}
KEYS = {(section, key): field for section, cls in SECTIONS.items() for key, field in cls.model_fields.items()}
KEY_COUNT = 182


def load(tmp_path: Path, text: str = "", **environ: str) -> config.Settings:
    file = tmp_path / "bot.toml"
    file.write_text(text, "utf-8")
    return config.load(file, environ)


def faults(tmp_path: Path, text: str = "", **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **environ)
    return str(caught.value).splitlines()


# -- the shipped file -----------------------------------------------------------------------------


def shipped_keys() -> dict[tuple[str, str], str]:
    """Every key of bot.toml, commented out or not, with what stands in its line."""
    found: dict[tuple[str, str], str] = {}
    section = ""
    for line in SHIPPED.read_text("utf-8").splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header[1]
        elif key := re.match(r"(?:# )?([a-z_]+) = ", line):
            assert (section, key[1]) not in found, f"[{section}] {key[1]} stands there twice"
            found[(section, key[1])] = line
    return found


def test_bot_toml_ships_every_key_and_no_other() -> None:
    found = set(shipped_keys())
    assert found == set(KEYS), f"missing: {sorted(set(KEYS) - found)}; unknown: {sorted(found - set(KEYS))}"
    assert len(found) == KEY_COUNT


def test_bot_toml_ships_the_defaults() -> None:
    assert config.load(SHIPPED, {}).model_dump(exclude={"paths"}) == config.Settings().model_dump(exclude={"paths"})
    assert tomllib.loads(SHIPPED.read_text("utf-8"))["paths"] == {"data": "data"}


def test_bot_toml_comments_out_exactly_what_is_unset() -> None:
    unset = {place for place, line in shipped_keys().items() if line.startswith("#")}
    assert unset == {place for place, field in KEYS.items() if field.default is None}
    assert len(unset) == 31


def test_bot_toml_says_above_every_key_what_its_docstring_says() -> None:
    flat = re.sub(r"\n# ", " ", SHIPPED.read_text("utf-8"))
    missing = [place for place, field in KEYS.items() if " ".join(str(field.description).split()) not in flat]
    assert missing == []


def test_every_setting_has_a_docstring() -> None:
    assert [place for place, field in KEYS.items() if not field.description] == []


# -- faults ---------------------------------------------------------------------------------------


def test_a_fault_reads_as_the_design_says(tmp_path: Path) -> None:
    assert faults(tmp_path, "[engine]\nn_ctx = 10") == ["bot.toml [engine] n_ctx = 10: must be at least 512 tokens"]


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    text = """
    colour = 1
    [engine]
    n_ctx = 10
    n_threads = "many"
    temperature = 0.5
    [conversation]
    timezone = "Mars/Base"
    [chat]
    scenes = ["group:1", "channel:2"]
    [training]
    lora_dropout = 1.0
    precision = "int3"
    [retrain]
    cron = "at night"
    [nonsense]
    """
    told = faults(tmp_path, text, TWIN__CHAT__HOLD_S="-1", TWIN__CHAT__NO_SUCH="1")
    expected = [
        "bot.toml [colour]: no such setting",
        "bot.toml [engine] n_ctx = 10: must be at least 512 tokens",
        "bot.toml [engine] n_threads = 'many': ",
        "bot.toml [engine] temperature: no such setting",
        "bot.toml [conversation] timezone = 'Mars/Base': 'Mars/Base' is not an IANA time zone",
        "bot.toml [chat] scenes.1 = 'channel:2': scene must be group:ID or private:ID",
        "environment TWIN__CHAT__HOLD_S = -1: must be at least 0 seconds",
        "environment TWIN__CHAT__NO_SUCH: no such setting",
        "bot.toml [training] lora_dropout = 1.0: must be less than 1",
        "bot.toml [training] precision = 'int3': ",
        "bot.toml [retrain] cron = 'at night': 'at night' is not a crontab line",
        "bot.toml [nonsense]: no such setting",
    ]
    for start in expected:
        assert [line for line in told if line.startswith(start)], f"nothing starts with {start!r} in {told}"
    assert len(told) == len(expected)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[engine]\nkv_tokens = 10", "kv_tokens = 10: must be at least 512 tokens"),
        ("[engine]\nn_ctx = 16384", "kv_tokens = 8192: must be at least n_ctx = 16384 tokens"),
        ("[engine]\nn_seq_max = 257", "n_seq_max = 257: must be at most 256"),
        ("[engine]\ndeadline_s = 0", "deadline_s = 0: must be more than 0 seconds"),
        ("[engine]\nremote_timeout_s = 0", "remote_timeout_s = 0: must be more than 0 seconds"),
        ("[onebot]\nport = 0", "port = 0: must be at least 1"),
        ("[onebot]\napi_timeout_s = 5", "api_timeout_s = 5: must be at least 20 seconds"),
        ("[log]\nretention_days = 0", "retention_days = 0: must be at least 1 days"),
        ("[training]\nseed = -1", "seed = -1: must be at least 0"),
        ("[training]\nseed = 4294967296", "seed = 4294967296: must be less than 4294967296"),
        ("[training]\nr = 1025", "r = 1025: must be at most 1024"),
        ("[training]\ntarget_modules = []", "should have at least 1 item"),
    ],
)
def test_a_bound_is_told_with_its_unit(tmp_path: Path, text: str, told: str) -> None:
    (line,) = faults(tmp_path, text)
    assert told in line


def test_a_training_has_no_more_threads_than_the_machine(tmp_path: Path) -> None:
    assert load(tmp_path, "[training]\nthreads = 100000").training.threads == os.cpu_count()


def test_a_folder_to_train_on_counts_from_bot_toml_and_an_id_stays(tmp_path: Path) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    found = load(tmp_path, '[training]\nbase = "models/base"').training
    assert found.base == str(tmp_path / "models" / "base")
    assert load(tmp_path, '[training]\nbase = "Qwen/Qwen3-0.6B"').training.base == "Qwen/Qwen3-0.6B"


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (line,) = faults(tmp_path, "[engine\nn_ctx = 10")
    assert line.startswith("bot.toml: not readable as TOML")


def test_a_wrong_token_is_not_shown(tmp_path: Path) -> None:
    (line,) = faults(tmp_path, "[onebot]\naccess_token = 987654")
    assert "987654" not in line
    assert "access_token = ***" in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("backend = 'remote'", "remote_url = None: must be set with backend = 'remote', such as http://"),
        ("remote_url = 'localhost:8000'", "remote_url = 'localhost:8000': must be a URL such as http://"),
        ("remote_url = 'http://me:s3cret@host/v1'", "remote_url = 'http://***@host/v1': must be a URL such as"),
        ("remote_format = 'alpaca'", "remote_format = 'alpaca': "),
        ("remote_api_key = 4711", "remote_api_key = ***: "),
    ],
)
def test_a_remote_engine_that_cannot_be_is_told(tmp_path: Path, text: str, told: str) -> None:
    (line,) = faults(tmp_path, f"[engine]\n{text}")
    assert told in line
    assert "s3cret" not in line


def test_the_key_of_a_remote_engine_comes_from_the_environment_and_is_not_shown(tmp_path: Path) -> None:
    url = "remote_url = 'http://127.0.0.1:8000/v1'"
    found = load(tmp_path, f"[engine]\nbackend = 'remote'\n{url}", TWIN__ENGINE__REMOTE_API_KEY="4711").engine
    assert found.remote_api_key is not None
    assert found.remote_api_key.get_secret_value() == "4711"
    assert "4711" not in f"{found!r}{found}"
    assert found.reads_base
    assert not found.model_copy(update={"remote_format": "gemma"}).reads_base


@pytest.mark.parametrize(("url", "allowed", "fine"), [
    ("http://127.0.0.1:8080/v1", False, True), ("http://localhost/v1", False, True),
    ("http://[::1]:80/v1", False, True), ("http://192.168.1.5/v1", False, False),
    ("https://api.example.com/v1", False, False), ("http://127.0.0.1.example.com/v1", False, False),
    ("https://api.example.com/v1", True, True),
])  # fmt: skip
def test_a_cleaning_model_on_another_machine_must_be_confirmed(
    tmp_path: Path, url: str, allowed: bool, fine: bool
) -> None:
    text = f"[cleaning]\nurl = '{url}'\nallow_remote = {str(allowed).lower()}"
    if fine:
        assert load(tmp_path, text, TWIN__CLEANING__API_KEY="4711").cleaning.url == url
        return
    (line,) = faults(tmp_path, text, TWIN__CLEANING__API_KEY="4711")
    assert line.startswith(f"bot.toml [cleaning] allow_remote = False: must be true for {url!r}")
    assert "4711" not in line


@pytest.mark.parametrize(("text", "stays"), [
    ("", True),
    ("[engine]\nbackend = 'remote'\nremote_url = 'http://127.0.0.1:8000/v1'", True),
    ("[engine]\nbackend = 'remote'\nremote_url = 'http://192.168.1.5:8000/v1'", False),
    ("[engine]\nremote_url = 'http://192.168.1.5:8000/v1'", True),
    ("[engine]\nremote_url = 'http://192.168.1.5:8000/v1'\ncaption_model = 'qwen2-vl'", False),
    ("[engine]\nremote_url = 'http://[::1]:8000/v1'\ncaption_model = 'qwen2-vl'", True),
    ("[cleaning]\nurl = 'http://localhost:8080/v1'", True),
    ("[cleaning]\nurl = 'https://api.example.com/v1'\nallow_remote = true", False),
    ("[gate]\njudge_url = 'https://api.example.com/v1'\njudge_model = 'm'", False),
    ("[gate]\njudge_url = 'http://127.0.0.1:8000/v1'\njudge_model = 'm'", True),
    ("[paths]\narchive_url = 'postgresql+psycopg://twin@db.example.com/twin'", False),
    ("[paths]\narchive_url = 'postgresql+psycopg://twin@localhost/twin'", True),
    ("[paths]\narchive_url = 'postgresql+psycopg:///twin?host=10.0.0.5'", False),
    ("[paths]\narchive_url = 'postgresql+psycopg:///twin?host=/var/run/postgresql'", True),
    ("[paths]\narchive_url = 'postgresql+psycopg://twin:a[b@localhost/twin'", True),
])  # fmt: skip
def test_what_is_written_stays_here_unless_a_server_that_is_used_is_another_machine(
    tmp_path: Path, text: str, stays: bool
) -> None:
    assert load(tmp_path, text).stays_here is stays


def test_no_cleaning_model_is_asked_unless_one_is_named() -> None:
    assert config.Settings().cleaning.url is None


def test_the_formats_named_in_settings_are_those_there_are() -> None:
    named = config.Engine.model_fields["remote_format"].annotation
    assert set(get_args(get_args(named)[0])) == set(FORMATS)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        config.Settings().engine.n_ctx = 1  # type: ignore[misc]


# -- precedence -----------------------------------------------------------------------------------


def test_the_environment_beats_the_file_and_the_file_the_default(tmp_path: Path) -> None:
    text = "[engine]\nn_ctx = 1024\nn_batch = 128"
    found = load(tmp_path, text, TWIN__ENGINE__N_CTX="4096", UNRELATED="1")
    assert (found.engine.n_ctx, found.engine.n_batch, found.engine.n_seq_max) == (4096, 128, 64)


def test_environment_values_are_toml_or_text(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        TWIN__ONEBOT__SUPERUSERS='["10001", "10002"]', TWIN__RETRAIN__ENABLED="false", TWIN__CHAT__PERSONA="小满",
        TWIN__CHAT__HOLD_S="1.5", TWIN__ONEBOT__ACCESS_TOKEN='"quoted"',
    )  # fmt: skip
    assert found.onebot.superusers == ("10001", "10002")
    assert (found.retrain.enabled, found.chat.persona, found.chat.hold_s) == (False, "小满", 1.5)
    assert config.access_token(found) == ("quoted", None)


@pytest.mark.parametrize("token", ["123456", "1e5", "true", "007", "s3cret", "2026-01-01", "[1]"])
def test_a_token_from_the_environment_is_taken_as_it_is(tmp_path: Path, token: str) -> None:
    assert config.access_token(load(tmp_path, TWIN__ONEBOT__ACCESS_TOKEN=token)) == (token, None)


def test_a_missing_file_means_all_defaults(tmp_path: Path) -> None:
    found = config.load(tmp_path / "bot.toml", {})
    assert found.engine == config.Engine()
    assert found.data == tmp_path / "data"


def test_a_file_saved_by_notepad_is_read(tmp_path: Path) -> None:
    (tmp_path / "bot.toml").write_bytes("\ufeff[engine]\r\nn_ctx = 1024\r\n".encode())
    assert config.load(tmp_path / "bot.toml", {}).engine.n_ctx == 1024


def test_paths_count_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    found = load(tmp_path, "[paths]\ndata = 'mine'")
    assert found.data == tmp_path / "mine"
    assert found.archive_url == f"sqlite:///{tmp_path / 'mine' / 'archive.db'}"


# -- the token ------------------------------------------------------------------------------------


def test_a_token_is_made_once_and_readable_by_the_owner_alone(tmp_path: Path) -> None:
    settings = load(tmp_path)
    token, file = config.access_token(settings)
    assert file == tmp_path / "data" / "access_token"
    assert len(token) >= 32
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert config.access_token(settings) == (token, file)
    assert sorted(p.name for p in file.parent.iterdir()) == ["access_token"]


def test_an_empty_token_file_is_replaced(tmp_path: Path) -> None:
    settings = load(tmp_path)
    settings.data.mkdir()
    (settings.data / "access_token").write_text("\n")
    token, _ = config.access_token(settings)
    assert len(token) >= 32


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("", False), ("example.org", False),
    ],
)  # fmt: skip
def test_an_empty_token_is_refused_beyond_loopback(tmp_path: Path, host: str, near: bool) -> None:
    settings = load(tmp_path, f"[onebot]\nhost = '{host}'\naccess_token = ''")
    if near:
        assert config.access_token(settings) == ("", None)
        return
    with pytest.raises(ConfigError, match="access_token is empty while host"):
        config.access_token(settings)


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("0 4 * * *", "0 4 * * *"),
        ("0 4 * * 0", "0 4 * * sun"),
        ("30 4 * * 1-5", "30 4 * * mon-fri"),
        ("0 4 * * 6,7", "0 4 * * sat,sun"),
        ("0 4 * * */2", "0 4 * * */2"),
        ("0 4 1 * sat", "0 4 1 * sat"),
    ],
)
def test_a_weekday_means_what_crontab_says(line: str, kept: str) -> None:
    assert config.Retrain(cron=line).cron == kept
