"""Everything that can go wrong in a way a user can mend.

TwinError
├── ConfigError      bot.toml or the environment is wrong; lists every fault at once
├── ArchiveError     the message store cannot be opened, read or written
│   └── ArchiveBusy  not just now: somebody else holds it, or the disk is full
├── ImportFault      a history file is not what it claims to be
├── TrainingError    a corpus, base or run cannot be trained
├── ExportError      a run cannot be turned into a GGUF, or is not equal to it
├── PersonaError     a persona folder or version is missing or does not verify
├── EngineError      a base or LoRA cannot be loaded or evaluated
├── TooLong          a program's request leaves no room in the window for what was said
└── SendError        the OneBot client did not take a message; says how it failed

A message says what, which one (`!r`), what was expected and what to do. The command line prints
it as one line and exits 1; the daemon tells the owner.
"""

from enum import StrEnum


class TwinError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigError(TwinError):
    """Settings are wrong. The message holds one line per fault, all faults at once."""


class ArchiveError(TwinError):
    """The message store cannot be opened, read or written."""


class ArchiveBusy(ArchiveError):
    """The message store is held by somebody else, or has no room; the same call may work later."""


class ImportFault(TwinError):
    """A history source cannot be read at all (single bad messages are counted, not raised)."""


class TrainingError(TwinError):
    """Training cannot start or did not finish."""


class ExportError(TwinError):
    """A run cannot be exported, or the export is not equal to the run."""


class PersonaError(TwinError):
    """A persona or one of its versions is missing, malformed or does not verify."""


class EngineError(TwinError):
    """The reply engine cannot load or evaluate a model."""


class TooLong(TwinError):
    """What a program gives as its system prompt leaves no room in the window for what was said."""


class SendFailure(StrEnum):
    """How a send failed. OFFLINE and REFUSED were certainly not delivered; the others may have been."""

    REFUSED = "refused"
    """QQ said no at once: muted, limited, not a friend."""
    SHADOWED = "shadowed"
    """Accepted and never confirmed: the usual face of risk control."""
    OFFLINE = "offline"
    """No client is connected, or the connection broke before the call was written."""
    UNKNOWN = "unknown"
    """No answer came in time; it may still be delivered."""
    BUG = "bug"
    """The client could not read the call: ours to mend."""


class SendError(TwinError):
    """The OneBot client did not take a message.

    Args:
        failure: what kind of failure it was.
        detail: the client's own words, without message text.
    """

    def __init__(self, failure: SendFailure, detail: str) -> None:
        super().__init__(f"send failed ({failure.value}): {detail}")
        self.failure = failure
        self.detail = detail
