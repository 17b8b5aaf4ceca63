import copy
import random
from collections import Counter

import pytest
import yaml

from data_pipeline.labels import (
    BASIC7,
    CELEBA_ATTRIBUTES,
    EXPRESSIONS,
    canonical_attribute,
    find_leaks,
)
from data_pipeline.questions import QuestionSet, closed_questions, render_questions
from data_pipeline.questions.balance import balance_weights, select, weights_of
from data_pipeline.questions.forms import FORMS, POSE_WORDS, Grid, pose_words
from data_pipeline.questions.question_set import shipped_templates
from data_pipeline.records import QA, qa_column, qa_rows
from data_pipeline.synth.actions import UNITS
from data_pipeline.synth.labels import labels_of
from data_pipeline.synth.sample import sample_face
from data_pipeline.weighing import weigh
from face_mllm.errors import UserError

LABELS = {
    "expression": "happiness",
    "action_units": {"AU12": 3.4, "AU4": 0.2, "AU43": 5.0, "AU25": True},
    "attributes": {
        "smiling": True,
        "beard": False,
        "black_hair": True,
        "blond_hair": False,
        "brown_hair": False,
        "odd_thing": True,
    },
    "age": 33.4,
    "age_band": "30-39",
    "head_pose": {"yaw": -14.2, "pitch": 4.9, "roll": 5.0},
    "gender": "male",
}
HELD = ("smiling", "mouth_open", "blond_hair", "eyes_closed")


def attributes_in_play():
    faces = (labels_of(sample_face(0, index)) for index in range(60))
    return {name for face in faces for name in face["attributes"]}


def by_task(items):
    table = {}
    for item in items:
        table.setdefault(item.task, {})[item.name] = item
    return table


def test_every_form_is_worded_and_every_wording_has_paraphrases():
    assert set(FORMS) == set(shipped_templates())
    for key, words in shipped_templates().items():
        assert 3 <= len(words.wordings) <= 7, key
        assert len(set(words.wordings)) == len(words.wordings), key


def test_compact_answers():
    asked = by_task(render_questions(LABELS, "a", 0, "compact", caption="a man"))
    assert asked["expression"]["all"].answer == "happiness"
    assert asked["expression"]["all"].choices == BASIC7
    assert {n: q.answer for n, q in asked["action_unit"].items()} == {
        "AU4": "no",
        "AU12": "mouth corners up",
        "AU25": "parted lips",
        "AU43": "closed eyes",
    }
    assert asked["action_unit"]["AU4"].choices == ("lowered brows", "no")
    assert asked["attribute"]["odd_thing"].answer == "odd thing"
    assert asked["age"]["all"].answer == "35"
    assert asked["age_band"]["all"].answer == "30-39"
    assert {n: q.answer for n, q in asked["head_pose"].items()} == {
        "yaw": "right 10",
        "pitch": "level",
        "roll": "clockwise 10",
    }
    assert asked["gender"]["all"].answer == "male"
    assert asked["caption"]["all"].answer == "a man"


def test_full_answers():
    asked = by_task(render_questions(LABELS, "a", 0, "full", HELD))
    assert asked["age"]["all"].answer == "33"
    assert asked["head_pose"]["yaw"].answer == "-14"
    assert asked["action_unit_list"]["all"].answer == "AU12, AU25, AU43"
    assert asked["action_unit_intensity"]["AU12"].answer == "3"
    assert "AU25" not in asked["action_unit_intensity"]  # an occurrence flag has no grade
    assert "happiness" in asked["expression_sentence"]["all"].answer
    colour = asked["attribute_choice"]["hair_color"]
    assert colour.answer == "black"
    assert set(colour.choices) == {"black", "brown"}
    assert {n: q.answer for n, q in asked["expression_yes_no"].items()} == {
        word: "yes" if word == "happiness" else "no" for word in BASIC7
    }


def test_no_active_unit_is_none_and_units_sort_by_number():
    none = by_task(render_questions({"action_units": {"AU4": 1.0}}, "a", 0, "full"))
    assert none["action_unit_list"]["all"].answer == "none"
    units = {"AU12": 5, "AU2": 5, "AU1": 5}
    three = by_task(render_questions({"action_units": units}, "a", 0, "full"))
    assert three["action_unit_list"]["all"].answer == "AU1, AU2, AU12"


@pytest.mark.parametrize("name", ["compact", "full"])
def test_unknown_is_never_asked(name):
    assert render_questions({}, "a", 0, name) == ()
    assert closed_questions({}, name, HELD) == []
    for key in LABELS:
        rest = {k: v for k, v in LABELS.items() if k != key}
        alone = render_questions({key: LABELS[key]}, "a", 0, name)
        assert set(alone).isdisjoint(render_questions(rest, "a", 0, name))
        assert alone


def test_rendering_hangs_on_seed_and_key_alone():
    first = render_questions(LABELS, "a", 7, "full")
    assert first == render_questions(copy.deepcopy(LABELS), "a", 7, "full")
    assert first != render_questions(LABELS, "a", 8, "full")
    assert first != render_questions(LABELS, "b", 7, "full")
    fewer = {**LABELS, "attributes": {"beard": False}}
    assert set(render_questions(fewer, "a", 7, "compact")) <= set(
        render_questions(LABELS, "a", 7, "compact")
    )


def test_canonical_share_holds_and_paraphrases_share_the_rest():
    words = Counter(
        render_questions({"gender": "male"}, f"k{i}", 0, "compact")[0].question for i in range(4000)
    )
    canonical, *others = [
        words[text] / 4000 for text in shipped_templates()["gender/word"].wordings
    ]
    assert canonical == pytest.approx(0.6, abs=0.03)
    assert others == pytest.approx([0.4 / 3] * 3, abs=0.025)


@pytest.mark.parametrize("name", ["compact", "full"])
def test_closed_answers_stand_among_their_choices(name):
    for qa in render_questions(LABELS, "a", 0, name, HELD, caption="a man"):
        assert not qa.choices or qa.answer in qa.choices


def test_closed_questions_use_canonical_words_and_exact_truths():
    asked = by_task(closed_questions(LABELS, "compact", HELD))
    assert asked["expression"]["all"].question == "Which expression?"
    assert asked["expression"]["all"].truth == BASIC7.index("happiness")
    assert asked["action_unit"]["AU12"].question == "Mouth corners up?"
    assert asked["action_unit"]["AU12"].choices == ("mouth corners up", "no")
    assert asked["action_unit"]["AU12"].truth == 0
    assert asked["action_unit"]["AU4"].truth == 1
    age = asked["age"]["all"]
    assert (age.truth, len(age.choices), age.values[:3]) == (33.4, 20, (0.0, 5.0, 10.0))
    yaw = asked["head_pose"]["yaw"]
    assert (yaw.truth, yaw.choices[0], yaw.choices[-1], len(yaw.choices)) == (
        -14.2,
        "right 90",
        "left 90",
        19,
    )
    assert yaw.values[0] == -90
    assert set(asked["zero_shot_attribute"]) == {"smiling", "blond_hair"}
    assert asked["zero_shot_attribute"]["smiling"].truth == 0
    assert set(asked["attribute"]) == {"beard", "black_hair", "brown_hair", "odd_thing"}
    assert "caption" not in asked


def test_closed_questions_can_be_limited_to_tasks():
    tasks = {
        q.task for q in closed_questions(LABELS, "compact", HELD, ["age", "zero_shot_attribute"])
    }
    assert tasks == {"age", "zero_shot_attribute"}


def test_held_out_attributes_leave_no_word_in_any_training_text():
    labels = {
        **LABELS,
        "attributes": {
            canonical_attribute(raw)[0]: bool(i % 2) for i, raw in enumerate(CELEBA_ATTRIBUTES)
        },
        "action_units": {f"AU{n}": 5.0 for n in (1, 12, 25, 26, 43, 45, 46)},
    }
    for name in ("compact", "full"):
        texts = [
            text
            for i in range(300)
            for qa in render_questions(labels, f"k{i}", 0, name, HELD)
            for text in (qa.question, qa.answer, *qa.choices)
        ]
        assert find_leaks(set(texts), HELD) == []
        assert any("AU43" in text for text in texts)  # asked by its number


def test_wordings_that_leak_are_what_the_filter_removes():
    texts = {render_questions(LABELS, f"k{i}", 0, "compact")[3].question for i in range(200)}
    assert find_leaks(texts, HELD)


def test_contempt_needs_the_eight_class_set():
    labels = {"expression": "contempt"}
    assert render_questions(labels, "a", 0, "compact") == ()
    eight = QuestionSet.load("compact", expression_classes="canonical8")
    (qa,) = render_questions(labels, "a", 0, eight)
    assert qa.choices == EXPRESSIONS


def test_grid_rounds_like_arithmetic():
    grid = Grid(start=-90, stop=90, step=10)
    rng = random.Random(0)
    for _ in range(2000):
        value = rng.uniform(-95, 94.99)
        nearest = min(grid.points, key=lambda point: (abs(point - value), -point))
        assert grid.nearest(value) == nearest
    assert grid.nearest(5.0) == 10
    assert not grid.holds(100)


def test_pose_outside_the_grid_is_not_asked_and_age_ends_at_the_last_choice():
    labels = {"head_pose": {"yaw": 120.0, "pitch": 1.0}, "age": 101}
    asked = by_task(render_questions(labels, "a", 0, "compact"))
    assert set(asked["head_pose"]) == {"pitch"}
    assert asked["age"]["all"].answer == "95"


def test_tasks_limit_training_questions():
    tasks = {qa.task for qa in render_questions(LABELS, "a", 0, "full", tasks=["action_unit"])}
    alone = {"", "_list", "_names", "_intensity", "_grade"}
    assert tasks == {f"action_unit{end}" for end in alone}


def write(path, content):
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_set_of_ones_own_with_ones_own_words(tmp_path):
    own = write(
        tmp_path / "mine.yaml",
        {
            "forms": ["gender/word", "age/years"],
            "canonical_share": 1.0,
            "grids": {"age": {"start": 20, "stop": 60, "step": 20}},
            "templates": {"gender/word": {"wordings": ["Geschlecht?"]}},
        },
    )
    chosen = QuestionSet.load(own)
    gender, age = sorted(render_questions(LABELS, "a", 0, chosen), key=lambda qa: qa.task)[::-1]
    assert (gender.question, age.choices, age.answer) == ("Geschlecht?", ("20", "40", "60"), "40")
    stored = QuestionSet.from_manifest({"question_set": chosen.model_dump(mode="json")})
    assert stored == chosen
    assert stored.hash == chosen.hash != QuestionSet.load("compact").hash


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"forms": ["gender/word"], "templates": {"gender/word": {"wordings": ["{who}?"]}}},
            r"mine.yaml: gender/word: unknown placeholder \{who\}",
        ),
        (
            {
                "forms": ["action_unit/yes_no"],
                "templates": {"action_unit/yes_no": {"wordings": ["{au} {nme}?"]}},
            },
            r"unknown placeholder \{nme\}.*\{au\}, \{name\}",
        ),
        ({"forms": ["gender/words"]}, "mine.yaml: unknown question form.*'gender/word'"),
        ({"form": ["gender/word"]}, "unknown key 'form'.*'forms'"),
        ({"forms": []}, "forms"),
        (
            {"forms": ["gender/word"], "templates": {"gender/word": {"wordings": ["{a"]}}},
            "mine.yaml: gender/word",
        ),
    ],
)
def test_a_broken_set_names_file_and_key(tmp_path, content, said):
    with pytest.raises(UserError, match=said):
        QuestionSet.load(write(tmp_path / "mine.yaml", content))


def test_an_unknown_set_lists_the_shipped_ones():
    with pytest.raises(UserError, match="compact, full"):
        QuestionSet.load("compactt")


# --- balance


def test_two_answers_get_equal_totals_and_mean_one():
    weights = balance_weights({"yes": 30, "no": 70})
    assert 30 * weights["yes"] == pytest.approx(70 * weights["no"])
    assert 30 * weights["yes"] + 70 * weights["no"] == pytest.approx(100)
    assert weights["yes"] == pytest.approx(100 / 60)


def test_the_cap_holds_and_the_mean_stays_one():
    weights = balance_weights({"yes": 10, "no": 990})
    assert weights == pytest.approx({"yes": 4.0, "no": (1000 - 40) / 990})


def test_balance_on_random_counts_keeps_its_promises():
    rng = random.Random(1)
    for _ in range(300):
        counts = {str(i): int(10 ** rng.uniform(0, 4)) for i in range(rng.randint(1, 9))}
        weights = balance_weights(counts)
        total = sum(counts.values())
        assert sum(weights[a] * n for a, n in counts.items()) == pytest.approx(total)
        assert max(weights.values()) <= 4.0 + 1e-9
        free = [weights[a] * n for a, n in counts.items() if weights[a] < 4.0]
        assert free == pytest.approx([free[0]] * len(free)) if free else True
        order = sorted(counts, key=lambda a: counts[a])
        assert [weights[a] for a in order] == sorted(weights.values(), reverse=True)


def test_absent_answers_do_not_count():
    assert balance_weights({"yes": 5, "no": 0}) == {"yes": 1.0}
    assert balance_weights({}) == {}


def test_weigh_multiplies_form_balance_and_source():
    qas = [QA("gender", "all", "?", "male", weight=2.0), QA("age", "all", "?", "30")]
    weights = weights_of({("gender", "all"): Counter(male=1, female=3)})
    (weighed,) = qa_rows(weigh(qa_column([qas]), weights, 0.5))
    assert [qa.weight for qa in weighed] == [2.0, 0.5]


def test_select_keeps_order_cap_and_every_task_alike():
    qas = [QA("attribute", f"a{i}", "?", "no") for i in range(40)] + [QA("age", "all", "?", "30")]
    kept = Counter()
    for i in range(2000):
        chosen = select(qas, 8, {}, f"k{i}")
        assert len(chosen) == 8
        assert [qas.index(qa) for qa in chosen] == sorted(qas.index(qa) for qa in chosen)
        kept.update(qa.task for qa in chosen)
    assert kept["age"] / 2000 > 0.95  # one of 41, yet as heavy as the forty together
    assert select(qas, None, {}, "k") == tuple(qas)


def test_select_prefers_rare_answers():
    qas = [QA("attribute", f"a{i}", "?", "yes" if i < 5 else "no") for i in range(40)]
    weights = {("attribute", f"a{i}"): {"yes": 4.0, "no": 0.9} for i in range(40)}
    rare = sum(
        qa.answer == "yes" for i in range(500) for qa in select(qas, 4, weights, f"k{i}")
    ) / (500 * 4)
    assert rare > 2.0 * 5 / 40


def test_named_answers_fall_back_to_the_muscle_where_the_words_would_leak():
    asked = by_task(render_questions(LABELS, "a", 0, "compact", ["mouth_open", "eyes_closed"]))
    assert asked["action_unit"]["AU25"].choices == ("mentalis relaxed", "no")
    assert asked["action_unit"]["AU43"].answer == "levator relaxed"


def test_first_words_of_synthetic_answers_differ():
    """An answer is decided where it begins, so no two facts of a face may begin alike."""
    facts = {
        "action_units": dict.fromkeys(UNITS, 5.0),
        "attributes": dict.fromkeys(attributes_in_play(), True),
    }
    asked = render_questions(facts, "a", 0, "compact", HELD)
    first = [qa.answer.split()[0] for qa in asked if qa.task in ("action_unit", "attribute")]
    first += [words.split()[0] for axis in POSE_WORDS.values() for words in axis]
    assert [word for word, count in Counter(first).items() if count > 1] == []
    assert len(first) > 50


def test_held_out_attributes_are_scored_by_name_and_by_yes_and_no():
    labels = {"attributes": {"smiling": True}}
    named, plain = closed_questions(labels, "compact", ["smiling"])
    assert (named.task, named.choices) == ("zero_shot_attribute", ("smile", "no"))
    assert (plain.task, plain.choices) == ("zero_shot_attribute_yes_no", ("yes", "no"))
    assert named.truth == plain.truth == 0
    (only,) = closed_questions(labels, "full", ["smiling"])
    assert (only.task, only.choices) == ("zero_shot_attribute", ("yes", "no"))


def test_pose_words_are_one_to_one_with_angles_and_name_their_axis():
    words = {axis: [pose_words(axis, d) for d in range(-90, 91, 10)] for axis in POSE_WORDS}
    every = [word for axis in words.values() for word in axis]
    assert len(set(every)) == len(every) == 3 * 19
    # the sign convention: yaw > 0 to the image's left, pitch > 0 up, roll > 0 clockwise
    positive = [pose_words(axis, 20) for axis in ("yaw", "pitch", "roll")]
    assert positive == ["left 20", "up 20", "clockwise 20"]
