"""``face-mllm chat``: one question, or a conversation about a face in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from data_pipeline.records import open_rgb
from face_mllm.errors import UserError
from face_mllm.progress import notice, quiet_libraries

if TYPE_CHECKING:
    from data_pipeline.faces import FacePolicy
    from face_mllm.chat import FaceMLLM

COMMANDS = "/image FILE shows another face, /forget drops what was said, /quit ends"


def converse(model: Path, image: Path | None, question: str | None, faces: str = "auto") -> None:
    """Answer one question, or read questions from standard input until it ends.

    Args:
        model: artifact folder.
        image: photograph of a face; in a conversation it may also come by ``/image FILE``.
        question: the one question, or None for a conversation.
        faces: ``auto``, ``none`` or ``detect`` (see :func:`face_mllm.photographs.policy_for`).

    Raises:
        UserError: no or a broken image, none with a face, or a folder without an artifact.
    """
    if image:
        open_rgb(str(image), str(image))
    elif question is not None:
        raise UserError("no picture to ask about", "add --image FILE")
    quiet_libraries()
    from face_mllm.chat import FaceMLLM
    from face_mllm.photographs import policy_for

    policy = policy_for(model, faces)
    picture = _largest(image, str(image), policy) if image else None
    notice("reading the model")
    loaded = FaceMLLM.from_pretrained(model)
    if question is not None and picture is not None:
        _answer(loaded, picture, question, [])
        return
    _Conversation(loaded, picture, policy).run()


def _largest(path: Path, name: str, policy: FacePolicy) -> Image.Image:
    """The face to talk about; further ones are mentioned."""
    from face_mllm.photographs import face_pictures

    found = face_pictures(open_rgb(str(path), name), name, policy)
    if len(found) > 1:
        print(f"{len(found)} faces in {name}: this is about the largest", file=sys.stderr)
    return found[0].image


def _answer(
    model: FaceMLLM, picture: Image.Image, question: str, history: list[tuple[str, str]]
) -> str:
    from transformers import TextStreamer

    tokenizer = model.scorer.processor.tokenizer
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    return model.ask(picture, question, history, streamer=streamer)


class _Conversation:
    """Reads lines, keeps the turns about the present picture."""

    def __init__(self, model: FaceMLLM, picture: Image.Image | None, policy: FacePolicy) -> None:
        self.model = model
        self.policy = policy
        self.picture = picture
        self.history: list[tuple[str, str]] = []

    def run(self) -> None:
        """Loop until the input ends or the user quits."""
        at_terminal = sys.stdin.isatty()
        if at_terminal:
            print(COMMANDS, file=sys.stderr)
        while True:
            try:
                line = input("> " if at_terminal else "").strip()
            except EOFError:
                return
            if line == "/quit":
                return
            if line:
                self._take(line)

    def _take(self, line: str) -> None:
        """One line; what is wrong with it is said without ending the conversation."""
        try:
            if line.startswith("/"):
                self._command(line)
            elif self.picture is None:
                raise UserError("no picture to ask about", "/image FILE")
            else:
                answer = _answer(self.model, self.picture, line, self.history)
                self.history.append((line, answer))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)

    def _command(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word not in ("/image", "/forget"):
            raise UserError(f"{word} is no command", COMMANDS)
        if word == "/image":
            name = rest.strip()
            self.picture = _largest(Path(name).expanduser(), name, self.policy)
        self.history = []
