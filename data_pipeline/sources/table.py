"""``table``: a csv, tsv or parquet file with a column map; how photographs of one's own come in.

Only the columns that are mapped are read. An empty cell is unknown. Words and codes are turned
into canonical ones by ``values``; a code nobody mapped stops the build and says so, because a
wrong guess (-1 as "absent", 0 as "undefined") would poison every label behind it.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from data_pipeline.labels.expressions import canonical_expression
from data_pipeline.labels.votes import leader
from data_pipeline.protocols import Protocol
from data_pipeline.records import FaceRecord
from data_pipeline.sources.base import (
    HASH_SPLIT,
    Dropped,
    Rows,
    Source,
    SourceOptions,
    canonical_split,
    check_split_rule,
    hash_split,
    reading,
    record_id,
)
from data_pipeline.sources.cells import CellReader
from face_mllm.errors import UserError

BATCH = 256
FAMILIES = ("attributes", "action_units", "expression_votes")


class Columns(BaseModel):
    """Which column holds what; ``image`` is required, the rest as far as it exists.

    Args:
        image: a path, encoded bytes, or a Hugging Face image struct.
        box: four columns, the face in the picture in px, by the option ``box``.
        expression_votes: how many annotators said each word, or which share: expression -> column.
        attributes: column names, or canonical name -> column name.
        action_units: column names such as AU12, or AU -> column name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str
    id: str | None = None
    split: str | None = None
    subject: str | None = None
    expression: str | None = None
    compound_expression: str | None = None
    gender: str | None = None
    age: str | None = None
    birth_year: str | None = None
    photo_year: str | None = None
    age_band: str | None = None
    yaw: str | None = None
    pitch: str | None = None
    roll: str | None = None
    caption: str | None = None
    licence: str | None = None
    box: Annotated[list[str], Field(min_length=4, max_length=4)] | None = None
    expression_votes: list[str] | dict[str, str] = []
    attributes: list[str] | dict[str, str] = []
    action_units: list[str] | dict[str, str] = []

    @field_validator("expression_votes")
    @classmethod
    def _words(cls, mapped: list[str] | dict[str, str]) -> dict[str, str]:
        pairs = mapped.items() if isinstance(mapped, dict) else zip(mapped, mapped, strict=True)
        try:
            return {canonical_expression(word): column for word, column in pairs}
        except UserError as error:
            raise ValueError(str(error)) from error

    def scalars(self) -> dict[str, str]:
        """Return field -> column of the single-column fields that are mapped."""
        pairs = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name: column for name, column in pairs if isinstance(column, str)}

    def family(self, name: str) -> dict[str, str]:
        """Return raw name -> column of ``attributes``, ``action_units`` or the votes."""
        mapped = getattr(self, name)
        return dict(mapped) if isinstance(mapped, dict) else {column: column for column in mapped}

    def needed(self) -> list[str]:
        """Return every mapped column once, in file-independent order."""
        families = [column for name in FAMILIES for column in self.family(name).values()]
        return list(dict.fromkeys([*self.scalars().values(), *(self.box or ()), *families]))


class TableOptions(SourceOptions):
    """Options of ``table``.

    Args:
        columns: the column map.
        values: field -> {raw value: canonical value, or null for unknown}; the fields are those
            of ``columns`` (``attributes`` and ``action_units`` apply to all their columns).
        box: what the columns of ``columns.box`` hold: two corners, or a corner with width and
            height.
        images: folder that image paths start from; the table's own folder when absent.
        split: hash rule used when no split column is mapped.
        reference_year: year of the photographs, for ages from ``birth_year`` alone.
    """

    columns: Columns
    values: dict[str, dict[Any, Any]] = Field(default_factory=dict)
    box: Literal["xyxy", "xywh"] = "xyxy"
    images: Path | None = None
    split: Annotated[str, AfterValidator(check_split_rule)] = HASH_SPLIT
    reference_year: int | None = None


def read_rows(root: Path, options: TableOptions, protocol: Protocol) -> Rows:
    """Yield one record per row of the table at ``root``.

    Raises:
        UserError: a file of another kind, a column that is not there (naming the nearest), or
            a value without meaning (naming row and column).
    """
    reader = _RowReader(root, options)
    for number, row in enumerate(_iter_table(root, options.columns), start=1):
        yield reader.record(row, number)


class _RowReader:
    def __init__(self, root: Path, options: TableOptions) -> None:
        self.options = options
        self.root = root
        self.name = options.name or root.stem
        self.images = root.parent / (options.images or "")
        self.columns = options.columns.scalars()
        self.cells = CellReader(str(root), options.values)
        self.families = {key: options.columns.family(key) for key in FAMILIES}

    def record(self, row: dict[str, Any], number: int) -> FaceRecord | Dropped:
        """Turn one row into a record, or say why not."""
        image = self._image(row[self.columns["image"]])
        if image is None:
            return Dropped("no image in the row", f"row {number}")
        key = record_id(self.name, self._key(row, number, image))
        subject = self._text(row, "subject", number)
        subject = f"{self.name}_{subject}" if subject else key
        split = self._split(row, number, subject)
        if split is None:
            return Dropped("split left out by values", f"row {number}")
        box = self._box(row, number)
        if box is None:
            return Dropped("no face box", f"row {number}")
        return FaceRecord(
            id=key,
            source=self.name,
            split=split,
            subject=subject,
            image=image,
            labels=self._labels(row, number),
            box=box,
            caption=self._text(row, "caption", number) or "",
            licence=self._text(row, "licence", number) or self.options.licence,
        )

    def _text(self, row: dict[str, Any], field: str, number: int) -> str | None:
        column = self.columns.get(field)
        return self.cells.text(row[column], field, column, number) if column else None

    def _key(self, row: dict[str, Any], number: int, image: bytes | str) -> str:
        given = self._text(row, "id", number)
        if given:
            return given
        if isinstance(image, bytes):
            return f"{number:08d}"
        path, folder = Path(image), self.images.resolve()
        inside = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
        return inside.with_suffix("").as_posix().replace("/", "_")

    def _image(self, cell: Any) -> bytes | str | None:
        if isinstance(cell, dict):  # Hugging Face image struct
            cell = cell.get("bytes") or cell.get("path")
        if not cell:
            return None
        if isinstance(cell, bytes):
            return cell
        return str((self.images / str(cell).strip().replace("\\", "/")).resolve())

    def _box(self, row: dict[str, Any], number: int) -> tuple[float, ...] | None:
        """Return the corners, () where none are mapped, None where the row has none."""
        columns = self.options.columns.box
        if columns is None:
            return ()
        cells = [self.cells.number(row[column], "box", column, number) for column in columns]
        known = [cell for cell in cells if cell is not None]
        if len(known) < len(cells):
            return None
        x, y, right, bottom = known
        if self.options.box == "xywh":
            right, bottom = x + right, y + bottom
        return (x, y, right, bottom) if right > x and bottom > y else None

    def _split(self, row: dict[str, Any], number: int, subject: str) -> str | None:
        column = self.columns.get("split")
        if column is None:
            return hash_split(subject, self.options.split)
        word = self.cells.text(row[column], "split", column, number)
        if word is None:
            return None
        split = canonical_split(word)
        if split is None:
            self.cells.refuse(word, "split", column, number, "train, val or test")
        return split

    def _labels(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        labels: dict[str, Any] = {}
        for field in ("expression", "compound_expression", "gender", "age", "age_band"):
            if column := self.columns.get(field):
                labels[field] = self.cells.label(row[column], field, column, number)
        if "birth_year" in self.columns:
            labels["age"] = self._age_from_years(row, number)
        for family, columns in self.families.items():
            labels[family] = self.cells.family(row, family, columns, number)
        if (votes := labels["expression_votes"]) and "expression" not in self.columns:
            labels["expression"] = leader(votes)
        labels["head_pose"] = {
            axis: value
            for axis in ("yaw", "pitch", "roll")
            if (column := self.columns.get(axis))
            and (value := self.cells.number(row[column], axis, column, number)) is not None
        }
        return {key: value for key, value in labels.items() if value not in (None, {})}

    def _age_from_years(self, row: dict[str, Any], number: int) -> float | None:
        born = self.cells.number(row[self.columns["birth_year"]], "birth_year", "", number)
        taken: float | None = self.options.reference_year
        if column := self.columns.get("photo_year"):
            taken = self.cells.number(row[column], "photo_year", column, number)
        return None if born is None or taken is None else taken - born


def _iter_table(root: Path, columns: Columns) -> Iterator[dict[str, Any]]:
    readers = {".csv": _iter_csv, ".tsv": _iter_csv, ".txt": _iter_csv, ".parquet": _iter_parquet}
    reader = readers.get(root.suffix.lower())
    if reader is None or not root.is_file():
        raise UserError(f"{root}: not a table", "give a .csv, .tsv or .parquet file as root")
    yield from reader(root, columns)


def _iter_csv(root: Path, columns: Columns) -> Iterator[dict[str, Any]]:
    delimiter = _delimiter(root)
    with reading(root), root.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True)
        header = [name.strip() for name in rows.fieldnames or ()]
        _check_columns(root, columns, header)
        rows.fieldnames = header
        for number, row in enumerate(rows, start=1):
            if not any(str(cell or "").strip() for cell in row.values()):
                continue  # a line of blanks
            if None in row or None in row.values():
                raise UserError(f"{root}: row {number} has not {len(header)} cells", "mend the row")
            yield row


def _delimiter(root: Path) -> str:
    """Return what stands oftenest in the header; a comma in doubt, a tab in a .tsv."""
    with reading(root), root.open(encoding="utf-8-sig") as file:
        head = file.readline()
    marks = ("\t", ",", ";") if root.suffix.lower() == ".tsv" else (",", ";", "\t")
    return max(marks, key=head.count)


def _iter_parquet(root: Path, columns: Columns) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(root, pre_buffer=False) as file:
            _check_columns(root, columns, file.schema_arrow.names)
            for batch in file.iter_batches(BATCH, columns=columns.needed()):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{root}: not readable as parquet ({error})", "write it again") from error


def _check_columns(root: Path, columns: Columns, header: list[str]) -> None:
    for column in columns.needed():
        if header.count(column) > 1:
            raise UserError(f"{root}: two columns {column!r}", "give one of them another name")
        if column not in header:
            near = difflib.get_close_matches(column, header, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(
                f"{root}: no column {column!r}", f"{hint}columns are {', '.join(header)}"
            )


def _protocol(options: TableOptions) -> str:
    return "table/split-column" if options.columns.split else f"table/{options.split}"


SOURCE = Source(
    name="table",
    summary="a csv, tsv or parquet file with a column map (`columns:`)",
    read_rows=read_rows,
    options=TableOptions,
    default_protocol=_protocol,
)
