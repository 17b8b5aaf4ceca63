"""Drawn faces with exact labels: a stand-in for rendered ones that needs no renderer."""

import io
import math
import random

from PIL import Image, ImageDraw

from data_pipeline.records import FaceRecord, write_dataset

SIDE = 96


def draw(labels, skin=(224, 172, 138)):
    image = Image.new("RGB", (SIDE, SIDE), (40, 44, 60))
    pen = ImageDraw.Draw(image)
    units, flags = labels["action_units"], labels["attributes"]
    aside = SIDE * 0.12 * math.sin(math.radians(-labels["head_pose"]["yaw"]))
    hair = (210, 180, 90) if flags["blond_hair"] else (40, 28, 20)
    pen.ellipse((16, 4, 80, 70), fill=hair)
    pen.ellipse((20, 12, 76, 88), fill=skin)
    if flags["light_from_left"] or flags["light_from_right"]:
        light = (20, 12, 40, 88) if flags["light_from_left"] else (56, 12, 76, 88)
        pen.ellipse(light, fill=(255, 228, 200))
    for x in (37 + aside, 59 + aside):
        pen.ellipse((x - 6, 38, x + 6, 46), fill=(250, 250, 250))
        pen.ellipse((x - 3, 39, x + 3, 45), fill=(30, 60, 110))
        lift = 1.4 * units["AU1"]
        pen.line((x - 8, 33 - lift, x + 8, 33 - lift), fill=(30, 20, 10), width=2)
        if flags["eyeglasses"]:
            pen.rectangle((x - 9, 35, x + 9, 49), outline=(0, 0, 0), width=2)
    pen.line((48 + aside, 44, 48 + 2 * aside, 58), fill=(150, 100, 80), width=3)
    curve = 1.8 * units["AU12"]
    pen.arc((34 + aside, 66 - curve, 62 + aside, 68 + curve), 0, 180, fill=(150, 20, 30), width=3)
    return image.rotate(-labels["head_pose"]["roll"], Image.Resampling.BILINEAR)


def some_labels(rng):
    happy = rng.random() < 0.5
    side = rng.choice(["left", "right", "none"])
    return {
        "expression": "happiness" if happy else "neutral",
        "action_units": {"AU1": rng.uniform(0, 5), "AU12": rng.uniform(2.5, 5) if happy else 0.0},
        "attributes": {
            "eyeglasses": rng.random() < 0.5,
            "blond_hair": rng.random() < 0.5,
            "smiling": happy,
            "light_from_left": side == "left",
            "light_from_right": side == "right",
        },
        "age": float(rng.randrange(18, 80)),
        "head_pose": {"yaw": rng.uniform(-40, 40), "pitch": 0.0, "roll": rng.uniform(-20, 20)},
    }


def write_faces(root, train=192, val=48, seed=0):
    """Write drawn faces as a records folder."""
    rng = random.Random(seed)
    with write_dataset(root) as writer:
        for split, count in (("train", train), ("val", val)):
            for index in range(count):
                labels = some_labels(rng)
                buffer = io.BytesIO()
                draw(labels).save(buffer, "PNG")
                name = f"{split}-{seed}-{index}"
                writer.add(
                    FaceRecord(name, "drawn", split, name, buffer.getvalue(), labels, licence="CC0")
                )
    return root
