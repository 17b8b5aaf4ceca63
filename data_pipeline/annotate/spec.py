"""Who annotates: ``KIND:MODEL[,key=value...]`` as typed settings.

``openai:gpt-4o-mini,base_url=https://host/v1,key_env=MY_KEY`` is an endpoint, ``hf:FOLDER_OR_ID`` a
local vision-language model, ``artifact:runs/stage3`` a model this package trained.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from face_mllm.configio import validate_model
from face_mllm.errors import UserError


class AnnotatorSpec(BaseModel):
    """What every annotator takes.

    Args:
        model: model name of the endpoint, hub id, or folder.
        name: how the dataset calls it; kind and model when empty.
        max_side: pictures are scaled down to this many pixels.
        max_tokens: longest answer; twice what a right one takes when None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    # settings that change speed or price, not answers: a resumed run may differ in them
    FREE: ClassVar[frozenset[str]] = frozenset({"name"})

    kind: str
    model: str = Field(min_length=1)
    name: str = ""
    max_side: int = Field(default=512, ge=32)
    max_tokens: int | None = Field(default=None, ge=16)

    @property
    def label(self) -> str:
        """The name in ``source``, manifest and files; no path of this machine."""
        return self.name or f"{self.kind}:{Path(self.model).name}"

    def identity(self) -> dict[str, Any]:
        """Return what the answers depend on: a job goes on only with the same."""
        known = self.model_dump(mode="json", exclude=set(self.FREE))
        folder = Path(self.model)
        if folder.is_dir():
            known |= {"model": folder.name, "fingerprint": folder_fingerprint(folder)}
        return {"name": self.label, **known}


class EndpointSpec(AnnotatorSpec):
    """An OpenAI-compatible chat endpoint.

    Args:
        base_url: up to and without ``/chat/completions``.
        key_env: name of the environment variable that holds the key; empty sends none.
        answers: how the schema is asked for: ``json_schema`` (strict), ``json_object``, or
            ``prompt`` (in words only), for servers that know no better.
        limit_key: the field that bounds the answer; newer models want the longer name.
        temperature: ``none`` leaves it out, for models that refuse it.
        image_tokens: what one picture counts as, for the estimate; corrected as answers come.
        input_price, output_price: US dollars per million tokens.
        requests_per_minute, tokens_per_minute: limits to keep within.
        workers: requests at a time.
        timeout: seconds to wait for one answer.
        attempts: tries per question through time-outs, 429 and 5xx.
        backoff: seconds before the second try; doubled each time.
    """

    FREE = AnnotatorSpec.FREE | {
        *(
            "base_url",
            "key_env",
            "image_tokens",
            "input_price",
            "output_price",
            "requests_per_minute",
        ),
        *("tokens_per_minute", "workers", "timeout", "attempts", "backoff"),
    }

    kind: Literal["openai"] = "openai"
    base_url: str
    key_env: str = ""
    answers: Literal["json_schema", "json_object", "prompt"] = "json_schema"
    limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: float | None = Field(default=0.0, ge=0)
    image_tokens: int = Field(default=800, ge=1)
    input_price: float | None = Field(default=None, ge=0)
    output_price: float | None = Field(default=None, ge=0)
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    workers: int = Field(default=4, ge=1, le=256)
    timeout: float = Field(default=60.0, gt=0)
    attempts: int = Field(default=6, ge=1)
    backoff: float = Field(default=1.0, gt=0)

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("write it as https://HOST/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("no key in the address: put it in a variable and give key_env")
        return value.rstrip("/")

    @field_validator("key_env")
    @classmethod
    def _a_name(cls, value: str) -> str:
        if value and not (value.isidentifier() and len(value) < 64):
            raise ValueError("give the NAME of an environment variable, not the key itself")
        return value

    @property
    def host(self) -> str:
        """Where pictures go; the same model may answer at another address tomorrow."""
        return urlsplit(self.base_url).netloc

    @property
    def priced(self) -> bool:
        """True when both prices are known."""
        return self.input_price is not None and self.output_price is not None

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """US dollars for so many tokens; 0 where no price is given."""
        total = tokens_in * (self.input_price or 0) + tokens_out * (self.output_price or 0)
        return total / 1e6


class LocalSpec(AnnotatorSpec):
    """A Hugging Face image-text-to-text model on this machine.

    Args:
        precision: auto, bf16 or fp32.
        batch: faces answered together.
    """

    FREE = AnnotatorSpec.FREE | {"batch"}

    kind: Literal["hf"] = "hf"
    precision: str = "auto"
    batch: int = Field(default=1, ge=1)


class ArtifactSpec(AnnotatorSpec):
    """A model this package trained.

    Args:
        precision: auto, bf16 or fp32.
        sure: an attribute is told when its likelier answer has at least this probability, and
            unknown below.
    """

    kind: Literal["artifact"] = "artifact"
    precision: str = "auto"
    sure: float = Field(default=0.7, ge=0.5, le=1)


KINDS: dict[str, type[AnnotatorSpec]] = {
    "openai": EndpointSpec,
    "hf": LocalSpec,
    "artifact": ArtifactSpec,
}


def parse_annotator(text: str) -> AnnotatorSpec:
    """Return the settings in ``KIND:MODEL[,key=value...]``.

    Raises:
        UserError: an unknown kind or key, a value that does not fit, or a missing base_url.
    """
    head, *pairs = text.split(",")
    kind, _, model = head.partition(":")
    if kind not in KINDS or not model.strip():
        raise UserError(
            f"annotator {head!r}", f"write KIND:MODEL with KIND one of {', '.join(KINDS)}"
        )
    settings: dict[str, Any] = {"kind": kind, "model": model.strip()}
    for pair in pairs:
        key, sign, value = pair.strip().partition("=")
        if not sign:  # may be half of a key pasted by mistake, so it is not shown
            raise UserError(f"annotator {head}: a setting without `=`", "write key=value")
        settings[key.strip()] = None if value.strip() == "none" else value.strip()
    return validate_model(settings, KINDS[kind], f"annotator {head}")


def parse_annotators(texts: list[str]) -> tuple[AnnotatorSpec, ...]:
    """Return one annotator, or two for consensus.

    Raises:
        UserError: none or more than two, or two of the same name.
    """
    if len(texts) not in (1, 2):
        raise UserError(f"{len(texts)} annotators", "give --annotator once, or twice for consensus")
    specs = tuple(map(parse_annotator, texts))
    if len({spec.label for spec in specs}) < len(specs):
        raise UserError(f"two annotators are called {specs[0].label}", "give one of them name=...")
    return specs


def folder_fingerprint(folder: Path) -> str:
    """Return 16 hex digits of a model folder: names, sizes, and what its json files say."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        if path.suffix == ".json":
            total.update(path.read_bytes())
    return total.hexdigest()[:16]
