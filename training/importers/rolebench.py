"""RoleBench's Chinese part: a role, a question, generated answers → dialogues under the role's prompt.

`rolebench-zh/{general,role_specific}/{train,test}.jsonl` holds `{"role", "question", "generated": [...]}` a line,
`profiles-zh/desc.json` a description by role. Source: RoleLLM, arXiv 2310.00746, and OpenCompass' configuration.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bot.errors import ImportFault
from training.dialogue import Dialogue, Turn, mended
from training.importers.source import Skipped

_TASK = (
    "你的特征描述是：{description}。现在请你回答我的一些问题，以准确展现你的人格特征！"
    "你的说话风格要全面模仿被赋予的人格角色！说话不要啰嗦，也不要太过于正式或礼貌。"
)
"""As the authors have it, less the sentence that makes the role deny being a program."""


@dataclass(slots=True)
class Choice:
    """What is taken of a RoleBench file.

    Args:
        roles: names of the roles; empty: the only one there is.
        answers: answers taken of each question, at most.
        profiles: description by role; a role without one has its name for a prompt.
        seen: records of each role, counted while reading.
    """

    roles: tuple[str, ...] = ()
    answers: int = 1
    profiles: Mapping[str, str] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)


def profiles(path: Path) -> dict[str, str]:
    """Descriptions by role, of a `desc.json`.

    Raises:
        ImportFault: it cannot be read or is something else.
    """
    try:
        read = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as e:
        raise ImportFault(f"profiles {str(path)!r} cannot be read: {e.strerror or e}") from e
    except (ValueError, RecursionError) as e:
        raise ImportFault(f"profiles {str(path)!r} is not JSON in UTF-8; it should be RoleBench's desc.json") from e
    if not isinstance(read, dict) or not read or not all(isinstance(v, str) for v in read.values()):
        raise ImportFault(f"profiles {str(path)!r} must be one object of role → description, as RoleBench's desc.json")
    return read


def identity(description: str) -> str:
    """The role's prompt without its name: what persona.toml's `[who] identity` should hold."""
    return _TASK.format(description=description.strip().rstrip("。"))


def system_prompt(role: str, description: str | None) -> str:
    """The role-play prompt."""
    return f"你是{role}，{identity(description)}" if description else f"你是{role}。"


def read(record: Mapping[str, Any], choice: Choice, note: Callable[[str], None]) -> list[Dialogue]:
    """A record's dialogues, one for each answer taken.

    Args:
        record: of the file.
        choice: which roles, how many answers.
        note: told what was mended.

    Raises:
        Skipped: it is of another role, or broken.
    """
    role, question, generated = record["role"], record["question"], record["generated"]
    if not isinstance(role, str) or not role.strip() or not isinstance(question, str):
        raise Skipped("a role or question that is not text")
    role = role.strip()
    choice.seen[role] += 1
    if choice.roles and role not in choice.roles:
        raise Skipped("another role")
    answers = [generated] if isinstance(generated, str) else generated
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise Skipped("answers that are no list of texts")
    worded = [a for a in answers if a.strip()]
    if not worded:
        raise Skipped("no answer to a question")
    asked, system = _without_name(question, role), system_prompt(role, choice.profiles.get(role))
    return [
        Dialogue(system, mended([Turn("user", asked), Turn("assistant", answer)], note))
        for answer in dict.fromkeys(worded[: choice.answers])
    ]


def _without_name(question: str, role: str) -> str:
    """Role-specific questions begin with the role's name and a comma; who is spoken to knows their name."""
    rest = question.strip().removeprefix(role)
    if rest != question.strip() and rest[:1] in ("，", ",", "、", "：", ":") and rest[1:].strip():
        return rest[1:].strip()
    return question
