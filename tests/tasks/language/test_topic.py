"""Answers about one request are told from answers about others."""

import pytest

from tunescope.tasks.language.topic import CHANCE, Topic

THINGS = [
    f"{first}{second}" for first in ("lamp", "boat", "cake", "drum") for second in ("shade", "yard", "ware", "stick")
]
REQUESTS = [f"Tell me about {thing}" for thing in THINGS]
ANSWERS = [f"Sure, a {thing} is useful and people like it number{i}" for i, thing in enumerate(THINGS)]


@pytest.fixture(scope="module")
def topic() -> Topic:
    return Topic(REQUESTS, ANSWERS, THINGS)


def test_other_words_about_the_same_are_on_topic(topic: Topic) -> None:
    said = [f"1. Every {thing} was made by hand" for thing in THINGS]
    assert all(topic(REQUESTS, ANSWERS, said))
    assert all(topic(REQUESTS, ANSWERS, ANSWERS))


def test_answers_to_others_are_not(topic: Topic) -> None:
    assert not any(topic(REQUESTS, ANSWERS, ANSWERS[1:] + ANSWERS[:1]))
    assert not any(topic(REQUESTS, ANSWERS, [""] * len(THINGS)))
    assert not any(topic(REQUESTS, ANSWERS, ["ynzc naq obng"] * len(THINGS)))


def test_of_answers_at_random_as_few_pass_as_is_said() -> None:
    """Requests in pairs of one group, and answers that share words between groups, too."""
    requests = [f"Make thing{i} of stuff{i % 7}" for i in range(60)]
    answers = [f"Take stuff{i % 7} and tool{i % 5}, then make thing{i}" for i in range(60)]
    topic = Topic(requests, answers, [str(i // 2) for i in range(60)])
    passed = [
        hit
        for shift in range(2, 58)
        for i, hit in enumerate(topic(requests, answers, answers[shift:] + answers[:shift]))
        if i // 2 != (i + shift) % 60 // 2
    ]
    assert 0 < sum(passed) / len(passed) <= CHANCE + 0.01


def test_one_group_alone_tells_nothing() -> None:
    with pytest.raises(ValueError, match="no others"):
        Topic(REQUESTS, ANSWERS, ["one"] * len(THINGS))
