"""What OpenAI's chat completions look like on the wire: the request checked, the answers built.

Source: platform.openai.com/docs/api-reference/chat. Fields that mean nothing here (penalties, tools, users) are
ignored, as other servers do; what would be answered wrongly is refused.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

_NOT_TEXT = {"image_url": "[图片]", "input_audio": "[语音]", "file": "[文件]"}
"""What people see of a part that is no text: canonical text, as in QQ."""


class Part(BaseModel):
    """A part of a message's content."""

    type: str
    text: str = ""

    @property
    def canonical(self) -> str:
        """Its canonical text; empty for kinds nobody would see."""
        return self.text if self.type == "text" else _NOT_TEXT.get(self.type, "")


class Turn(BaseModel):
    """One message of a request."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """Its content as canonical text, parts joined."""
        if isinstance(self.content, list):
            return "".join(part.canonical for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    """How a stream ends."""

    include_usage: bool | None = None


def _ends_with_words(turns: list[Turn]) -> list[Turn]:
    # Clients put notes and nudges behind what was said; as every other system text they come to stand in front.
    last = next((turn for turn in reversed(turns) if turn.role not in ("system", "developer")), None)
    if last is None or last.role != "user" or not last.text.strip():
        raise ValueError("must end with what a user says: there is nothing to answer")
    return turns


class ChatRequest(BaseModel):
    """A request for one answer; None leaves the persona's own setting."""

    model: str
    messages: Annotated[list[Turn], Field(min_length=1), AfterValidator(_ends_with_words)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = None
    stop: str | list[str] | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """What is asked for otherwise than the persona has it."""
        asked = {
            "temperature": self.temperature, "top_p": self.top_p,
            "max_tokens": self.max_completion_tokens or self.max_tokens,
        }  # fmt: skip
        return {name: value for name, value in asked.items() if value is not None}

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer before them."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in found if text)


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens of the prompt and of the answer."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def completion(head: dict[str, Any], text: str, finish: str, used: dict[str, int]) -> dict[str, Any]:
    """A whole answer.

    Args:
        head: id, created and model.
        text: the bubbles, one a line; empty where the person would have said nothing.
        finish: `stop` or `length`.
        used: `usage`.
    """
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": used}


def chunk(head: dict[str, Any], delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    """A part of a streamed answer."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def failure(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
