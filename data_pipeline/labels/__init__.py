"""Label spaces with canonical names; unknown is a third state everywhere."""

from data_pipeline.labels.action_units import (
    ACTIVE_THRESHOLD,
    ActionUnit,
    action_units,
    au_number,
    is_active,
    parse_action_unit,
)
from data_pipeline.labels.ages import FAIRFACE_BANDS, band_midpoint, band_of, canonical_band
from data_pipeline.labels.attributes import (
    CELEBA_ATTRIBUTES,
    Attribute,
    attribute,
    attributes,
    canonical_attribute,
)
from data_pipeline.labels.expressions import (
    BASIC7,
    COMPOUND_EXPRESSIONS,
    EXPRESSIONS,
    SYNONYMS,
    canonical_expression,
)
from data_pipeline.labels.leaks import Leak, find_leaks
from data_pipeline.labels.validate import GENDERS, POSE_AXES, validate_labels

__all__ = [
    "ACTIVE_THRESHOLD",
    "BASIC7",
    "CELEBA_ATTRIBUTES",
    "COMPOUND_EXPRESSIONS",
    "EXPRESSIONS",
    "FAIRFACE_BANDS",
    "GENDERS",
    "POSE_AXES",
    "SYNONYMS",
    "ActionUnit",
    "Attribute",
    "Leak",
    "action_units",
    "attribute",
    "attributes",
    "au_number",
    "band_midpoint",
    "band_of",
    "canonical_attribute",
    "canonical_band",
    "canonical_expression",
    "find_leaks",
    "is_active",
    "parse_action_unit",
    "validate_labels",
]
