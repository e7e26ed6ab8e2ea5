"""The report's sections with clips: retrieval, hard groups, questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jepa.evaluation import page, pictures, selection, svg
from jepa.evaluation.page import Html, tag

if TYPE_CHECKING:
    from jepa.evaluation.report import Material

_TOP = 3


def sections(material: Material) -> list[Html]:
    """Returns the sections for the tasks that were run."""
    found = []
    if ("retrieval",) in material.evidence:
        found.append(_retrieval(material))
    if ("hard",) in material.evidence:
        found.append(_hard(material))
    if ("questions",) in material.evidence:
        found.append(_questions(material))
    return found


def draw(rng: np.random.Generator, pool: Sequence[int], count: int) -> list[int]:
    """Returns up to `count` of `pool`, drawn without replacement, in order."""
    return sorted(rng.choice(pool, min(count, len(pool)), replace=False).tolist()) if pool else []


def _clip(frames: np.ndarray, alt: str, note: str, css: str = "", count: int = 5) -> Html:
    picture = pictures.strip(frames, count)
    height, width = picture.shape[:2]
    return tag(
        "li",
        page.image(pictures.data_uri(picture), alt, width=str(width), height=str(height)),
        tag("p", note),
        css=f"clip {css}".strip(),
    )


def _mark(right: bool) -> Html:
    return tag("span", "✓ ", css="good") if right else tag("span", "✗ ", css="bad")


def _retrieval(material: Material) -> Html:
    evidence, numbers = material.evidence["retrieval",], material.numbers["retrieval"]
    ranks, scores = evidence["ranks"]["text_to_video"], evidence["scores"]
    rng = material.rng
    drawn = draw(rng, list(range(len(ranks))), 4)
    missed = [i for i in np.flatnonzero(ranks > 1).tolist() if i not in drawn]
    failures = draw(rng, missed, 3)
    order = {query: np.argsort(-scores[query], kind="stable") for query in drawn + failures}
    wanted = {int(i) for query in order for i in (*order[query][:_TOP], query)}
    frames = material.source.frames(
        numbers["split"], sorted({evidence["indices"][i] for i in wanted})
    )

    def case(query: int) -> Html:
        caption, rank = evidence["captions"][query], int(ranks[query])
        places = [int(i) for i in order[query][:_TOP]]
        if query not in places:
            places.append(query)
        clips = []
        for place in places:
            right = place == query
            at = int(np.flatnonzero(order[query] == place)[0]) + 1 if not right else rank
            text = evidence["captions"][place]
            clips.append(
                _clip(
                    frames[evidence["indices"][place]],
                    f"Filmstrip of a clip captioned: {text}",
                    page.join(
                        [
                            _mark(right),
                            f"place {at}, similarity {scores[query, place]:.2f}. ",
                            "The right clip." if right else f"Its own caption: “{text}”",
                        ]
                    ),
                    "right" if right else "wrong",
                )
            )
        said = "found at once" if rank == 1 else f"the right clip came at place {rank}"
        return tag(
            "article",
            tag("h4", f"“{caption}”"),
            tag("p", _mark(rank == 1), f"{said} of {len(ranks)}"),
            tag("ol", *clips, css="clips"),
            css="case",
        )

    rows = []
    for key, label in (("text_to_video", "text → video"), ("video_to_text", "video → text")):
        entry = numbers[key]
        rows.append(
            [
                label,
                *[_percent(entry[f"recall_at_{k}"]) for k in (1, 5, 10)],
                f"{entry['median_rank']['value']:g}",
            ]
        )
    chance = numbers["text_to_video"]
    rows.append(
        [
            "chance",
            *[f"{chance[f'recall_at_{k}']['chance'] * 100:.1f}%" for k in (1, 5, 10)],
            f"{chance['median_rank']['chance']:g}",
        ]
    )
    parts = [
        page.table(
            ["Direction", "R@1", "R@5", "R@10", "Median rank"],
            rows,
            caption=f"{numbers['count']} clips with pairwise different captions",
            numeric=(1, 2, 3, 4),
        ),
        tag("h3", "Drawn at random from all queries"),
        tag("div", *map(case, drawn), css="cases"),
    ]
    if failures:
        parts += [
            tag("h3", "Drawn at random from the misses"),
            tag("div", *map(case, failures), css="cases"),
        ]
    return page.section(
        "retrieval",
        "Finding a clip by a sentence",
        "Each sentence is compared with every clip; the nearest clips are shown from left to "
        "right. Five frames of each clip, in order of time.",
        *parts,
    )


def _percent(measure: Mapping[str, Any]) -> str:
    low, high = measure["low"] * 100, measure["high"] * 100
    return f"{measure['value'] * 100:.1f}% ({low:.0f}–{high:.0f})"


def _hard(material: Material) -> Html:
    evidence, numbers = material.evidence["hard",], material.numbers["hard"]
    groups = np.array(evidence["groups"])
    names = sorted(set(evidence["groups"]))
    rng = material.rng
    drawn = [names[i] for i in draw(rng, list(range(len(names))), 4)]
    rows = {name: np.flatnonzero(groups == name).tolist()[:4] for name in drawn}
    frames = material.source.frames(
        numbers["split"], sorted({evidence["indices"][i] for part in rows.values() for i in part})
    )

    def case(name: str) -> Html:
        members = np.flatnonzero(groups == name).tolist()
        clips = []
        for row in rows[name]:
            hit = evidence["hits"][row]
            own = evidence["scores"][row, members]
            chosen = evidence["captions"][members[int(np.argmax(own))]]
            caption = evidence["captions"][row]
            if hit == 1:
                note = "its text finds this clip"
            elif hit > 0:
                note = "its text is as near to another clip of the group: a guess"
            else:
                note = f"its text finds another clip: “{chosen}”"
            clips.append(
                _clip(
                    frames[evidence["indices"][row]],
                    f"Filmstrip of a clip captioned: {caption}",
                    page.join([_mark(hit == 1), f"“{caption}”: {note}"]),
                    "right" if hit == 1 else "wrong",
                    count=8,
                )
            )
        right = sum(evidence["hits"][row] == 1 for row in members)
        return tag(
            "article",
            tag("h4", f"A group of {len(members)} clips"),
            tag("p", f"{right} of {len(members)} texts find their own clip"),
            tag("ul", *clips, css="clips wide"),
            css="case",
        )

    share, chance = numbers["text_to_video"], numbers["text_to_video"]["chance"]
    return page.section(
        "hard",
        "Clips that differ in motion only",
        f"{numbers['groups']} groups of clips that share their shapes and colours and differ in "
        "what moves, where to, or in which order. The right clip of its group is found for "
        f"{share['value']:.0%} of the texts (95% interval "
        f"{share['low']:.0%} to {share['high']:.0%}); guessing would find {chance:.0%}.",
        tag("div", *map(case, drawn), css="cases"),
    )


def _questions(material: Material) -> Html:
    evidence, numbers = material.evidence["questions",], material.numbers["questions"]
    blank = material.numbers.get("controls", {}).get("blank", {}).get("questions")
    rows = []
    for kind, entry in numbers["kinds"].items():
        items = [svg.bar(0, entry["balanced"])]
        if blank:
            items.append(svg.bar(1, blank["kinds"][kind]["balanced"]))
        label = f"{kind} ({entry['accuracy']['count']})"
        rows.append((label, items, entry["balanced"]["chance"]))
    keys = [("s0", "this model")] + ([("s1", "the same model, blank frames")] if blank else [])
    chart = tag(
        "figure",
        tag("figcaption", "Accuracy by kind of question, answers balanced (number of questions)"),
        Html(svg.bars(rows, alt=_alt(rows))),
        page.legend([*keys, ("tick", "chance")]),
        css="chart",
    )
    rng = material.rng
    chosen = draw(rng, list(range(len(evidence["hits"]))), 6)
    missed = [i for i in np.flatnonzero(evidence["hits"] < 1).tolist() if i not in chosen]
    chosen_wrong = draw(rng, missed, 3)
    indices = {evidence["questions"][i][0] for i in chosen + chosen_wrong}
    frames = material.source.frames(numbers["split"], sorted(indices))
    records = material.source.records(numbers["split"])

    def item(number: int) -> Html:
        index, question = evidence["questions"][number]
        right = evidence["hits"][number] == 1
        said = evidence["chosen"][number]
        caption = selection.caption_of(records[index], "full") or records[index].key
        answer = f"“{said}”" if right else f"“{said}”; right would be “{question.answer}”"
        return _clip(
            frames[index],
            f"Filmstrip of a clip: {caption}",
            page.join([tag("strong", question.query), " ", _mark(right), answer]),
            "right" if right else "wrong",
        )

    parts = [
        chart,
        tag("h3", "Drawn at random from all questions"),
        tag("ul", *map(item, chosen), css="clips"),
    ]
    if chosen_wrong:
        parts += [
            tag("h3", "Drawn at random from the wrong answers"),
            tag("ul", *map(item, chosen_wrong), css="clips"),
        ]
    return page.section(
        "questions",
        "Answering questions",
        f"{numbers['count']} questions; the candidate answer nearest to the prediction counts as "
        "given. What the same model scores without seeing shows how much can be guessed from the "
        "question.",
        *parts,
    )


def _alt(rows: Sequence[svg.Row]) -> str:
    return "Bars: " + "; ".join(
        f"{label} {', '.join(f'{value:.0%}' for _, value, _, _ in items)}"
        + (f", chance {chance:.0%}" if chance is not None else "")
        for label, items, chance in rows
    )
