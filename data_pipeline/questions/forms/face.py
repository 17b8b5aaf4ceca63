"""Forms about the person and the picture: age, gender, caption."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.labels.ages import FAIRFACE_BANDS
from data_pipeline.labels.validate import GENDERS
from data_pipeline.questions.forms.base import Context, Item, Labels, form, number


@form("age/years", "age")
def _age_years(labels: Labels, context: Context) -> Iterator[Item]:
    if "age" in labels:
        yield number("all", labels["age"], context.age, context)


@form("age/units", "age_units")
def _age_units(labels: Labels, context: Context) -> Iterator[Item]:
    if "age" in labels:
        yield number("all", labels["age"], context.age, context, "year")


@form("age/band", "age_band")
def _age_band(labels: Labels, context: Context) -> Iterator[Item]:
    band = labels.get("age_band")
    if band in FAIRFACE_BANDS:
        yield Item("all", band, choices=FAIRFACE_BANDS)


@form("gender/word", "gender")
def _gender(labels: Labels, context: Context) -> Iterator[Item]:
    if labels.get("gender") in GENDERS:
        yield Item("all", labels["gender"], choices=GENDERS)


@form("caption/open", "caption")
def _caption(labels: Labels, context: Context) -> Iterator[Item]:
    if context.caption:
        yield Item("all", context.caption)
