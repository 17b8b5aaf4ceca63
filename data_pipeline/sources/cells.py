"""Table cells to canonical labels: empty is unknown, an unmapped code is an error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from data_pipeline.labels.action_units import parse_action_unit
from data_pipeline.labels.ages import canonical_band
from data_pipeline.labels.attributes import canonical_attribute, snake_case
from data_pipeline.labels.expressions import COMPOUND_EXPRESSIONS, find_expression
from face_mllm.errors import UserError

GENDER_WORDS = {"male": "male", "m": "male", "man": "male"} | {
    "female": "female",
    "f": "female",
    "woman": "female",
}
FLAG_WORDS = {"true": True, "yes": True, "1": True} | {"false": False, "no": False, "0": False}


_COMPOUND = {snake_case(word): word for word in COMPOUND_EXPRESSIONS}
_FINDERS: Mapping[str, Callable[[str], str | None]] = {
    "expression": find_expression,
    "compound_expression": lambda word: _COMPOUND.get(snake_case(word)),
    "gender": lambda word: GENDER_WORDS.get(word.lower()),
}


def plain(cell: Any) -> str:
    """Return a cell as text; whole floats lose their ``.0`` so that codes compare."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


class CellReader:
    """Reads cells of one table.

    Args:
        table: name of the file, for errors.
        values: field -> {raw value: canonical value or None}.
    """

    def __init__(self, table: str, values: Mapping[str, Mapping[Any, Any]]) -> None:
        self.table = table
        self.values = {
            field: {plain(raw).lower(): value for raw, value in mapping.items()}
            for field, mapping in values.items()
        }

    def refuse(self, cell: Any, field: str, column: str, number: int, expected: str) -> NoReturn:
        """Raise the error of a value without meaning."""
        raise UserError(
            f"{self.table}: row {number}, column {column!r}: {cell!r} is no {field} "
            f"(expected {expected})",
            f"map it in the recipe: `values: {{{field}: {{{cell}: ...}}}}`, null for unknown",
        )

    def mapped(self, cell: Any, field: str) -> Any:
        """Return the cell after ``values``, None when it is empty, NaN or mapped to null."""
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return None
        table = self.values.get(field)
        word = plain(cell)
        if table and word.lower() in table:
            return table[word.lower()]
        return None if word == "" else cell

    def text(self, cell: Any, field: str, column: str, number: int) -> str | None:
        """Return the cell as text, or None when unknown."""
        value = self.mapped(cell, field)
        return None if value is None else plain(value)

    def number(self, cell: Any, field: str, column: str, number: int) -> float | None:
        """Return the cell as a finite number, or None when unknown."""
        value = self.mapped(cell, field)
        if value is None:
            return None
        try:
            found = float(value)
        except (TypeError, ValueError):
            self.refuse(cell, field, column or field, number, "a number")
        return found if math.isfinite(found) else None

    def flag(self, cell: Any, field: str, column: str, number: int) -> bool | None:
        """Return the cell as true or false, or None when unknown."""
        value = self.mapped(cell, field)
        if value is None or isinstance(value, bool):
            return value
        found = FLAG_WORDS.get(plain(value).lower())
        if found is None:
            self.refuse(cell, field, column, number, "true/false, yes/no or 1/0")
        return found

    def label(self, cell: Any, field: str, column: str, number: int) -> Any:
        """Return the canonical label of an expression, plain or compound, gender, age or band."""
        if field == "age":
            return self.number(cell, field, column, number)
        word = self.text(cell, field, column, number)
        if word is None:
            return None
        if field == "age_band":
            return self._band(word, column, number)
        found = _FINDERS[field](word)
        if found is None:
            self.refuse(cell, field, column, number, "a known word")
        return found

    def _shares(
        self, row: dict[str, Any], columns: Mapping[str, str], number: int
    ) -> dict[str, float]:
        """Return expression -> share of the votes for the mapped words; votes or shares go in."""
        field, votes = "expression_votes", dict[str, float]()
        for word, column in columns.items():
            count = self.number(row[column], field, column, number)
            if count is None:
                return {}
            if count < 0:
                self.refuse(row[column], field, column, number, "no less than 0 votes")
            votes[word] = count
        total = sum(votes.values())
        return {word: count / total for word, count in votes.items() if count}

    def _band(self, word: str, column: str, number: int) -> str:
        try:
            return canonical_band(word)
        except UserError:
            self.refuse(word, "age_band", column, number, "a band such as 20-29 or 70+")

    def family(
        self, row: dict[str, Any], family: str, columns: Mapping[str, str], number: int
    ) -> dict[str, Any]:
        """Return canonical name -> value of the attribute, action-unit or vote columns."""
        if family == "expression_votes":
            return self._shares(row, columns, number)
        found: dict[str, Any] = {}
        for raw, column in columns.items():
            if family == "attributes":
                name, negated = canonical_attribute(raw)
                flag = self.flag(row[column], family, column, number)
                if flag is not None:
                    found[name] = flag != negated
            else:
                value = self.mapped(row[column], family)
                if value is not None and not isinstance(value, bool):
                    value = self.number(value, family, column, number)
                if value is not None:
                    found[parse_action_unit(raw).label] = value
        return found
