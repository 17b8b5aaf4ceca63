"""The crop policy: what of a photograph becomes the picture of a face, in words that travel.

A recipe states it, every crop carries its name, the manifest and the trained artifact carry it
whole, so that a photograph met later is cut as the training faces were.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from face_mllm.errors import UserError

_NAME = re.compile(r"(box|eyes)-(\d+)-m([\d.e-]+)")


class FacePolicy(BaseModel):
    """How faces are cut from photographs.

    Args:
        mode: ``none``: a picture is used as it is (already cropped to the face); ``detect``: it
            is a photograph to find faces in.
        align: ``none``: an upright square around the face's box; ``eyes``: the face is turned and
            scaled so that its five landmarks lie as in :data:`data_pipeline.faces.align.TEMPLATE`.
        margin: room on every side, as a share of the box's longer side.
        size: side of the crop in pixels.
        min_score: faces the detector is less sure of do not count.
        min_side: faces whose box has a shorter side (px of the photograph) do not count.
        search: a photograph whose longer side has more pixels is shrunk to it before the search;
            more finds smaller faces, at a cost that grows with its square.
        several: of several faces take the ``largest`` or ``all``, or stop (``error``).
        use_boxes: where a record of a source carries a box, that is its face; else, or where
            there is none, the detector looks for faces.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["none", "detect"] = "detect"
    align: Literal["none", "eyes"] = "none"
    margin: float = Field(default=0.1, ge=0, le=4)
    size: int = Field(default=224, ge=16, le=4096)
    min_score: float = Field(default=0.5, gt=0, le=1)
    min_side: int = Field(default=16, ge=1)
    search: int = Field(default=640, ge=64, le=8192)
    several: Literal["largest", "all", "error"] = "largest"
    use_boxes: bool = True

    @property
    def name(self) -> str:
        """What decides how a crop looks, as in ``eyes-224-m0.1``: equal name, equal framing."""
        if self.mode == "none":
            return "none"
        kind = "eyes" if self.align == "eyes" else "box"
        return f"{kind}-{self.size}-m{self.margin:g}"

    def as_manifest(self) -> dict[str, Any] | str:
        """Return what a manifest says of it: ``none``, or its name and every setting."""
        return "none" if self.mode == "none" else {"policy": self.name, **self.model_dump()}

    @classmethod
    def from_name(cls, name: str) -> FacePolicy:
        """Rebuild the framing from a policy's name; the search for faces is the default one.

        Raises:
            UserError: no such name.
        """
        found = _NAME.fullmatch(name)
        if not found:
            raise UserError(f"{name!r} is no crop policy", "build the dataset again")
        align: Literal["none", "eyes"] = "eyes" if found[1] == "eyes" else "none"
        return cls(align=align, size=int(found[2]), margin=float(found[3]))

    @classmethod
    def from_manifest(cls, said: Any) -> FacePolicy:
        """Rebuild the policy from what :meth:`as_manifest` said; nothing said is ``none``.

        Raises:
            UserError: the entry is not a policy this version knows.
        """
        if not isinstance(said, Mapping):
            return NO_FACES
        try:
            return cls.model_validate({key: said[key] for key in cls.model_fields if key in said})
        except ValueError as error:
            raise UserError(
                f"crop policy {dict(said)!r} is not one this version knows",
                "pass `--faces none` or `--faces detect`, or install the version that wrote it",
            ) from error


NO_FACES = FacePolicy(mode="none")


def _from_word(value: Any) -> Any:
    return {"mode": value} if isinstance(value, str) else value


Faces = Annotated[FacePolicy, BeforeValidator(_from_word)]
