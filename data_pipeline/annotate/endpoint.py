"""Annotators behind an OpenAI-compatible ``/chat/completions``: patient, paced, within budget.

Time-outs, broken connections, 408, 409, 425, 429 and 5xx are tried again with doubled, jittered
waits; ``Retry-After`` is honoured and holds every worker. A key or address that is refused ends the
run: asking on would only repeat it.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from data_pipeline.annotate.pace import LONGEST_WAIT, Budget, Pace, Stop, backoff, retry_after
from data_pipeline.annotate.questions import Questions
from data_pipeline.annotate.reply import Reply, data_url, scrubbed
from data_pipeline.annotate.spec import EndpointSpec
from face_mllm.errors import UserError

AGAIN = {408, 409, 425, 429}
FINAL = {401, 402, 403, 404, 405}
OUT_OF_MONEY = ("insufficient_quota", "billing_hard_limit_reached")
FILTERED = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")
MAX_REPLY = 1 << 20  # characters; a longer body is no answer


@dataclass(frozen=True)
class _Again:
    """Nothing usable came back; worth another try.

    Args:
        why: in words, without the body.
        wait: seconds the server asked for.
        billed: it may have been charged all the same.
    """

    why: str
    wait: float = 0.0
    billed: bool = False


class Endpoint:
    """Asks one endpoint.

    Args:
        spec: who and how.
        questions: what is asked.
        budget: shared by every annotator of the job.
        stop: ends its waits.

    Raises:
        UserError: the key's variable is not set.
    """

    batch = 1
    tries = 2

    def __init__(
        self, spec: EndpointSpec, questions: Questions, budget: Budget, stop: Stop
    ) -> None:
        import httpx2

        self.http = httpx2
        self.spec = spec
        self.questions = questions
        self.budget = budget
        self.stop = stop
        self.workers = spec.workers
        self.pace = Pace(spec.requests_per_minute, spec.tokens_per_minute, stop.sleep)
        self.key = _key(spec)
        self.max_tokens = answer_limit(spec, questions)
        self.tokens_in = prompt_tokens(spec, questions)
        self._lock = threading.Lock()
        self.client = httpx2.Client(
            timeout=spec.timeout,
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            limits=httpx2.Limits(max_connections=spec.workers),
        )

    def close(self) -> None:
        """Let go of the connections."""
        self.client.close()

    def ask(self, pictures: Sequence[Image.Image]) -> list[Reply]:
        """Return one reply per picture.

        Raises:
            UserError: the endpoint refuses the key, the model or the address, asks for too long
                a pause, or the budget is used up.
            EndingError: the run is ending.
        """
        return [self._ask(self._body(picture)) for picture in pictures]

    def _body(self, picture: Image.Image) -> dict[str, Any]:
        url = data_url(picture, self.spec.max_side)
        content = [
            {"type": "text", "text": self.questions.prompt},
            {"type": "image_url", "image_url": {"url": url}},
        ]
        body: dict[str, Any] = {
            "model": self.spec.model,
            "messages": [{"role": "user", "content": content}],
            self.spec.limit_key: self.max_tokens,
        }
        if self.spec.temperature is not None:
            body["temperature"] = self.spec.temperature
        if self.spec.answers == "json_object":
            body["response_format"] = {"type": "json_object"}
        elif self.spec.answers == "json_schema":
            schema = {"name": "face", "strict": True, "schema": self.questions.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _ask(self, body: dict[str, Any]) -> Reply:
        lost, why = 0.0, ""
        for attempt in range(self.spec.attempts):
            found, cost = self._once(body)
            if isinstance(found, Reply):
                return replace(found, cost=cost + lost)
            lost, why = lost + cost, found.why
            if found.wait > LONGEST_WAIT:
                raise UserError(
                    f"{self.spec.label}: asks to wait {found.wait:.0f} s ({found.why})",
                    "run the same command again later: answers are kept",
                )
            if found.wait:
                self.pace.hold(found.wait)
            if attempt + 1 < self.spec.attempts:
                self.stop.sleep(found.wait + backoff(attempt, self.spec.backoff))
        return Reply(failure=f"{why}, {self.spec.attempts} tries", cost=lost)

    def _once(self, body: dict[str, Any]) -> tuple[Reply | _Again, float]:
        """One request in its turn and within the budget, and what it is taken to have cost."""
        self.pace.wait(self.tokens_in + self.questions.answer_tokens)
        worst = self.spec.cost(self.tokens_in, self.max_tokens)
        self.budget.reserve(worst)
        cost = worst  # unless what comes back says otherwise
        try:
            found = self._post(body)
            if isinstance(found, Reply):
                known = found.tokens_in or found.tokens_out
                cost = self.spec.cost(found.tokens_in, found.tokens_out) if known else worst
            elif not found.billed:
                cost = 0.0
        finally:
            self.budget.settle(worst, cost)
        return found, cost

    def _post(self, body: dict[str, Any]) -> Reply | _Again:
        try:
            response = self.client.post(f"{self.spec.base_url}/chat/completions", json=body)
        except self.http.RequestError as error:
            return self._broken(error)
        text = response.text[:MAX_REPLY]
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        said = found if isinstance(found, dict) else {}
        if response.status_code != 200 or "error" in said:
            return self._refused(response.status_code, response.headers, text, said)
        return self._reply(said) or _Again("answer without choices", billed=True)

    def _broken(self, error: Exception) -> _Again:
        """No answer arrived; what may have reached the server may have been charged."""
        http = self.http
        unsent = isinstance(error, http.ConnectError | http.ConnectTimeout | http.PoolTimeout)
        late = isinstance(error, http.TimeoutException)
        why = "timed out" if late else f"no connection ({type(error).__name__})"
        return _Again(why, billed=not unsent)

    def _reply(self, said: Mapping[str, Any]) -> Reply | None:
        try:
            choice = said["choices"][0]
            message = choice["message"]
            text = _text(message.get("content"))
        except (KeyError, IndexError, TypeError, AttributeError):
            return None
        tokens_in, tokens_out = _used(said.get("usage"))
        with self._lock:  # what a picture really takes, for the next reservation
            self.tokens_in = max(self.tokens_in, tokens_in)
        ended = choice.get("finish_reason")
        refusal = scrubbed(str(message.get("refusal") or ""), self.key)
        if ended == "content_filter":
            refusal = refusal or "content filter"
        return Reply(
            text, refusal, cut=ended == "length", tokens_in=tokens_in, tokens_out=tokens_out
        )

    def _refused(
        self, status: int, headers: Mapping[str, str], text: str, said: Mapping[str, Any]
    ) -> Reply | _Again:
        """Sort an error answer: a refusal, worth another try, or the end of the run."""
        kind = json.dumps(said.get("error") or "")
        words = scrubbed(" ".join(text.split()), self.key)[:300]
        if any(mark in kind for mark in FILTERED):
            return Reply(refusal=f"content filter ({words})")
        broke = any(mark in kind for mark in OUT_OF_MONEY)
        if status in FINAL or 300 <= status < 400 or broke:
            raise UserError(
                f"{self.spec.label}: {self.spec.host} answers {status}: {words}", _remedy(status)
            )
        if status in AGAIN or status >= 500 or status == 200:
            return _Again(f"answered {status}", retry_after(headers.get("retry-after")))
        return Reply(failure=f"rejected with {status}: {words}")


def _key(spec: EndpointSpec) -> str:
    if not spec.key_env:
        return ""
    key = os.environ.get(spec.key_env, "").strip()
    if not key:
        raise UserError(
            f"{spec.label}: no environment variable {spec.key_env}",
            f"set it: export {spec.key_env}=...",
        )
    return key


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "check the key in the variable that key_env names, then run the command again"
    if status in (404, 405) or status < 400:
        return "check base_url (without /chat/completions) and the model's name"
    return "mend the account, then run the command again: answers are kept"


def _text(content: object) -> str:
    """Content is text, or a list of parts of which some are text."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def _used(usage: object) -> tuple[int, int]:
    if not isinstance(usage, dict):
        return 0, 0
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    tokens_in, tokens_out = (int(n) if isinstance(n, int | float) else 0 for n in counts)
    return tokens_in, tokens_out


def answer_limit(spec: EndpointSpec, questions: Questions) -> int:
    """Return the most tokens an answer may have: room for twice a right one."""
    return spec.max_tokens or 2 * questions.answer_tokens + 50


def prompt_tokens(spec: EndpointSpec, questions: Questions) -> int:
    """Estimate the tokens of one question: four characters each, and the picture."""
    words = len(questions.prompt)
    if spec.answers == "json_schema":
        words += len(json.dumps(questions.schema))
    return math.ceil(words / 4) + spec.image_tokens
