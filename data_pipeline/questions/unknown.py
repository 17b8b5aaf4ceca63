"""Questions about what is not known, for sets that ask for them: "cannot be told".

Off by default, because an absent label mostly means that nobody looked. A set that lists names
under ``ask_unknown`` says: where these are not labelled, the face does not show them (an occluded
unit, an attribute annotators left undecided).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from data_pipeline.labels.action_units import parse_action_unit
from data_pipeline.labels.attributes import attributes, canonical_attribute
from data_pipeline.labels.expressions import COMPOUND_EXPRESSIONS
from data_pipeline.labels.validate import GENDERS, POSE_AXES
from data_pipeline.questions.forms import Context, Form, Item, Labels
from face_mllm.errors import UserError

CANNOT_TELL = "cannot be told"

# a label that is known by another key, too
_ELSEWHERE = {
    "expression": ("expression_votes", "compound_expression"),
    "age": ("age_band",),
    "age_band": ("age",),
}
_SCALARS: dict[str, Any] = {
    "age": 30,
    "age_band": "30-39",
    "compound_expression": COMPOUND_EXPRESSIONS[0],
    "gender": GENDERS[0],
}


def canonical_name(name: str) -> str:
    """Return a name of ``ask_unknown`` as labels write it.

    Raises:
        UserError: when it is no label, axis, action unit or registered attribute.
    """
    if name in _SCALARS or name in POSE_AXES or name == "expression":
        return name
    attribute, negated = canonical_attribute(name)
    if attribute in attributes() and not negated:
        return attribute
    try:
        return parse_action_unit(name).label
    except UserError as error:
        raise UserError(
            f"ask_unknown: {name!r} is no label, action unit or attribute",
            "write expression, age, gender, yaw, AU12, eyeglasses or the like",
        ) from error


def unknown_items(form: Form, labels: Labels, context: Context) -> Iterator[Item]:
    """Yield the closed questions of a form about every name that is asked and not known.

    The form itself words them: it is given a stand-in label, whose answer is then replaced.
    """
    for name in context.unknown:
        if _known(name, labels):
            continue
        for item in form.build(_stand_in(name, context), replace(context, unknown=())):
            if item.choices and item.name in (name, "all"):
                choices = (*item.choices, CANNOT_TELL)
                yield replace(item, answer=CANNOT_TELL, choices=choices, values=None, truth=None)


def _known(name: str, labels: Labels) -> bool:
    if name == "gender" and "male" in labels.get("attributes", {}):
        return True
    if name == "male" and "gender" in labels:
        return True
    families = ("attributes", "action_units", "head_pose")
    if any(name in labels.get(family, {}) for family in families):
        return True
    return any(key in labels for key in (name, *_ELSEWHERE.get(name, ())))


def _stand_in(name: str, context: Context) -> Labels:
    if name == "expression":
        return {name: context.classes[0]}
    if name in _SCALARS:
        return {name: _SCALARS[name]}
    if name in POSE_AXES:
        return {"head_pose": {name: 0.0}}
    family = "attributes" if name in attributes() else "action_units"
    return {family: {name: 0 if family == "action_units" else False}}
