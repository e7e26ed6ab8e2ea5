"""Answers are true, come from closed lists, and cannot be guessed from how often they occur."""

import collections

import pytest

from jepa.data.world import questions, scene, words

COUNT = 1500


@pytest.fixture(scope="module")
def asked():
    found = collections.defaultdict(list)
    for index in range(COUNT):
        clip = scene(0, "validation", index, draw=False)
        for _, query, answer, kind, candidates in clip.questions:
            found[kind].append((query, answer, candidates, clip))
    return found


def test_every_kind_is_asked_in_three_ways(asked):
    assert set(asked) == set(questions.PHRASINGS) - {"possible"}
    for kind, found in asked.items():
        heads = {query.split()[0] for query, *_ in found}
        assert len({query for query, *_ in found}) >= 3, kind
        assert heads


def test_answers_are_among_the_candidates(asked):
    for found in asked.values():
        for _, answer, candidates, _ in found:
            assert candidates.count(answer) == 1


def test_answers_balance(asked):
    for kind, found in asked.items():
        candidates = found[0][2]
        if kind in ("order", "hit"):  # two candidates of the scene's own: which one is right?
            counts = collections.Counter(c.index(a) for _, a, c, _ in found)
            choices = 2
        else:
            counts = collections.Counter(answer for _, answer, _, _ in found)
            assert set(counts) == set(candidates)
            choices = len(candidates)
        # Always giving the commonest answer is right no more often than chance and 4 deviations.
        chance = 1 / choices
        spread = (chance * (1 - chance) / len(found)) ** 0.5
        # Members of a group share their subject, so fewer draws than clips are independent.
        assert max(counts.values()) / len(found) < chance + 4 * 1.6 * spread, (kind, counts)


def test_answers_are_the_labels(asked):
    for kind in ("colour", "size", "direction", "count"):
        for _, answer, _, clip in asked[kind]:
            label = clip.labels.get(kind)
            if label is not None:
                assert answer == words.DIRECTION_PHRASES.get(label, label)


def test_a_question_about_one_of_several_names_it_by_what_is_not_asked(asked):
    for query, answer, _, clip in asked["colour"]:
        (track,) = [t for t in clip.tracks if t.shape in query]
        assert track.colour == answer
    for query, answer, _, clip in asked["shape"]:
        (track,) = [t for t in clip.tracks if t.colour in query]
        assert answer.endswith(track.shape)


def test_queries_do_not_give_the_answer_away(asked):
    for kind in ("colour", "shape", "direction", "count", "outcome", "order", "hit", "change"):
        for query, answer, _, _ in asked[kind]:
            assert answer.split()[-1] not in query.rstrip("?").split()
