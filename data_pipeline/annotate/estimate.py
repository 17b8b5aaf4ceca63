"""What a run will take, said before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.annotate.endpoint import answer_limit, prompt_tokens
from data_pipeline.annotate.questions import Questions
from data_pipeline.annotate.spec import AnnotatorSpec, EndpointSpec


@dataclass(frozen=True)
class Estimate:
    """What one annotator has left to do.

    Args:
        label: its name.
        faces: still to be asked about.
        host: where pictures go, empty when they stay here.
        tokens: about how many, in and out.
        usd: about how much; None without prices, 0 on this machine.
        most: when every answer is as long as it may be.
        spent: by earlier runs of the same job.
        minutes: at least so long, by the rate limits.
    """

    label: str
    faces: int
    host: str = ""
    tokens: tuple[int, int] = (0, 0)
    usd: float | None = 0.0
    most: float = 0.0
    spent: float = 0.0
    minutes: float = 0.0


def estimate(spec: AnnotatorSpec, questions: Questions, faces: int, spent: float = 0.0) -> Estimate:
    """Estimate what ``faces`` questions to an annotator take."""
    if not isinstance(spec, EndpointSpec):
        return Estimate(spec.label, faces)
    each_in, each_out = prompt_tokens(spec, questions), questions.answer_tokens
    total = (faces * each_in, faces * each_out)
    by_requests = faces / spec.requests_per_minute if spec.requests_per_minute else 0.0
    by_tokens = sum(total) / spec.tokens_per_minute if spec.tokens_per_minute else 0.0
    return Estimate(
        spec.label,
        faces,
        spec.host,
        total,
        spec.cost(*total) if spec.priced else None,
        spec.cost(total[0], faces * answer_limit(spec, questions)),
        spent,
        max(by_requests, by_tokens),
    )


def describe_estimates(estimates: Sequence[Estimate], max_cost: float | None) -> str:
    """Return the estimate in words, a line per annotator."""
    lines = [_line(found) for found in estimates]
    if max_cost is not None:
        lines.append(f"stops before {max_cost:g} USD in all, earlier runs included")
    return "\n".join(lines)


def _line(found: Estimate) -> str:
    if not found.host:
        return f"{found.label}: {found.faces} faces on this machine"
    parts = [f"{found.label}: {found.faces} faces go to {found.host}"]
    parts.append("about {:,} tokens in and {:,} out".format(*found.tokens))
    if found.usd is None:
        parts.append("cost unknown without input_price and output_price")
    else:
        parts.append(f"about {found.usd:.2f} USD, at most {found.most:.2f} without second tries")
    if found.spent:
        parts.append(f"{found.spent:.2f} USD spent already")
    if found.minutes >= 1:
        parts.append(f"at least {found.minutes:.0f} minutes")
    return "; ".join(parts)
