"""What a trial of maps says: that they are better than controls, no better, or cannot be told.

They are accepted where every lower bound of their gains lies above EPS, on both fills. A control is
as good where its upper bounds lie below DELTA on both. Anything between the two is not told. Of
maps that beat all controls but the picture's edges, that is said: maps that are known to be wrong
get so far, too, where objects stand out from what is around them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seenby.scores import (
    ANOTHER,
    BOX,
    COVERINGS,
    DEFAULT,
    EDGES,
    FLAT,
    MIRRORED,
    MOVED,
    OWN,
    REDRAWN,
    Interval,
    Intervals,
    Observation,
    intervals,
    responds,
    scores_of,
    scores_of_coverings,
    split_half,
    thirds,
)

EPS, DELTA = 0.02, 0.05
FEWEST, ENOUGH, MOST = 8, 40, 1000  # pictures: for any verdict, by default, for anybody's patience
RELIABLE = 0.6  # from here on a picture's score is more than chance

DECIDING = {FLAT: "a flat map", ANOTHER: "another picture's", MIRRORED: "their mirror image",
            MOVED: "themselves moved"}
BESIDE = {BOX: ("a box in the middle", "does"), EDGES: ("the edges of the picture", "do"),
          REDRAWN: ("a network of freshly drawn weights", "does")}


@dataclass(frozen=True)
class Trust:
    """What the trial of N pictures says of their maps."""

    verdict: str  # "points", "like edges", "no better", "cannot tell" or "no response"
    headline: str
    sentences: tuple[str, ...]
    pictures: int
    sets: int  # of covered tiles, for each picture and fill
    labelled: int
    correct: int
    correlation: dict[str, Intervals]  # of the maps and of each control with the fall
    minus: dict[str, Intervals]  # the maps' own less each control's
    default_minus: dict[str, Intervals]  # the default's less that of other layers, pads, methods
    reliability: float | None  # of one picture's score; None: too few pictures
    thirds: tuple[str, ...] | None  # low, middle or high for each picture, where that is reliable

    def __str__(self) -> str:
        return "\n".join(self.sentences)


def judge(observations: Sequence[Observation]) -> Trust:
    """The verdict, and the words for it."""
    N = len(observations)
    scores = scores_of(observations) | {COVERINGS: scores_of_coverings(observations)}  # (N, fills)
    correlation = {name: intervals(score) for name, score in scores.items()}
    minus = {name: intervals(scores[OWN] - scores[name]) for name in (*DECIDING, *BESIDE)}
    # Where the default was asked for, it is their own.
    default = scores.get(DEFAULT, scores[OWN])
    named = {OWN, DEFAULT, COVERINGS, *DECIDING, *BESIDE}
    others = {name: score for name, score in scores.items() if name not in named}
    default_minus = {name: intervals(default - score) for name, score in others.items()}
    verdict, headline, sentence = decide(minus, N)
    if not any(map(responds, observations)):
        verdict, headline = "no response", "The network does not respond"
        sentence = "the network does not respond to what is covered"
    beside = [sentence_beside(*words, minus[name]) for name, words in BESIDE.items()]
    asked = [] if DEFAULT not in scores else [
        sentence_beside("the default", "does", intervals(scores[OWN] - default))]
    better = sentence_of_others({name: intervals(score - scores[OWN])
                                 for name, score in others.items()})
    labelled = [o.correct for o in observations if o.correct is not None]
    correct = sum(labelled)
    counts = sentence_of_counts(N, observations[0].falls.numel(), len(labelled), correct)
    reach = sentence_of_reach(correlation[OWN], correlation[COVERINGS])
    is_told = verdict != "no response" and N >= FEWEST
    told = [reach, *beside, *asked, better] if is_told else []
    reliability = split_half(observations) if N >= FEWEST else None
    is_reliable = reliability is not None and reliability >= RELIABLE
    return Trust(
        verdict=verdict, headline=headline, sentences=(sentence, *told, counts),
        pictures=N, sets=len(observations[0].sets), labelled=len(labelled), correct=correct,
        correlation=correlation,
        minus=minus, default_minus=default_minus, reliability=reliability,
        thirds=thirds(scores[OWN].mean(1)) if is_reliable else None,
    )  # fmt: skip


# -------------------------------------------------------------------------------------- the words


def decide(gains: dict[str, Intervals], N: int) -> tuple[str, str, str]:
    """The verdict, its headline and its sentence, from the gains over the controls."""
    edges, gains = gains[EDGES], {name: gains[name] for name in DECIDING}
    if N >= FEWEST and all(is_above(gain, EPS) for gain in gains.values()):
        by = ", ".join(f"{DECIDING[name]} by {words_of(weaker(gain))}"
                       for name, gain in gains.items())
        if not is_above(edges, EPS):
            perhaps = "" if is_below(edges, DELTA) else "perhaps "
            words = f"{perhaps}not better than the picture's edges"
            return ("like edges", words.capitalize(),
                    f"these maps are {words}, which no network draws; they beat {by}")
        headline = "These maps point at what the network uses"
        return "points", headline, f"{headline.lower()}: better than {by}"
    if N >= FEWEST and (equal := [name for name, gain in gains.items() if is_below(gain, DELTA)]):
        *most, last = (DECIDING[name] for name in equal)
        words = f"{', '.join(most)} or {last}" if most else last
        said = ", ".join(words_of(stronger(gains[name])) for name in equal)
        return ("no better", f"No better than {words}",
                f"these maps are no better than {words}: by {said}")
    headline = f"Cannot tell with {N} picture{'s' * (N > 1)}"
    return "cannot tell", headline, f"{headline.lower()}; {pictures_needed(gains, N)}"


def pictures_needed(gains: dict[str, Intervals], N: int) -> str:
    """How many would do, as an interval shrinks with the root of their number."""
    if N < FEWEST:
        return f"about {ENOUGH} would do"

    def ratio(width: float, distance: float) -> float:
        return (width / distance) ** 2 if distance > 0 else math.inf

    to_accept = max(ratio(mean - low, mean - EPS) for gain in gains.values()
                    for mean, low, _ in gain.values())
    to_reject = min(max(ratio(high - mean, DELTA - mean) for mean, _, high in gain.values())
                    for gain in gains.values())
    needed = 10 * math.ceil(min(to_accept, to_reject, MOST) * N / 10)
    if min(to_accept, to_reject) == math.inf:
        return "the two fills disagree, so more would not help"
    return f"about {needed} would do" if needed <= MOST else f"more than {MOST} would be needed"


def sentence_of_reach(own: Intervals, coverings: Intervals) -> str:
    """Where the maps score far less, it is they that know little, and not the trial."""
    is_less = weaker(own)[0] < weaker(coverings)[0]
    return (f"their own score is {words_of(weaker(own))}; maps made of half of the coverings score "
            f"{words_of(weaker(coverings))} on the other half"
            + ", so that much can be reached" * is_less)


def sentence_beside(words: str, does: str, gain: Intervals) -> str:
    """Of a control that the verdict does not rest on."""
    if is_above(gain, EPS):
        return f"they beat {words} by {words_of(weaker(gain))}"
    if is_below(gain, 0):
        return f"{words} {does} better by {words_of(weaker(negative(gain)))}"
    if is_below(gain, DELTA):
        return f"{words} {does} as well: {words_of(stronger(gain))}"
    return f"whether they beat {words} cannot be told: {words_of(weaker(gain))}"


def sentence_of_others(gains: dict[str, Intervals]) -> str:
    """Which of the other layers, pads and methods do better."""
    better = [f"the default with {name} does better by {words_of(weaker(gain))}"
              for name, gain in gains.items() if is_above(gain, EPS)]
    return "; ".join(better) or f"none of {', '.join(gains)} does better"


def sentence_of_counts(pictures: int, times: int, labelled: int, correct: int) -> str:
    read = (f"{correct} of {labelled} with a label are classified correctly" if labelled else
            "none has a label, so how many are classified correctly is not known")
    return f"of {pictures} picture{'s' * (pictures > 1)}, each covered {times} times; {read}"


def is_above(gain: Intervals, bound: float) -> bool:
    return all(low > bound for _, low, _ in gain.values())


def is_below(gain: Intervals, bound: float) -> bool:
    return all(high < bound for _, _, high in gain.values())


def negative(gain: Intervals) -> Intervals:
    return {fill: (-mean, -high, -low) for fill, (mean, low, high) in gain.items()}


def weaker(gain: Intervals) -> Interval:
    """On the fill that says less."""
    return min(gain.values(), key=lambda interval: interval[1])


def stronger(gain: Intervals) -> Interval:
    """On the fill that says more."""
    return max(gain.values(), key=lambda interval: interval[2])


def words_of(interval: Interval) -> str:
    mean, low, high = (f"{value:.2f}" for value in interval)
    return f"{mean} ({low} to {high})"


def as_json(trust: Trust) -> dict[str, Any]:
    """As trust.json has it."""
    return {"eps": EPS, "delta": DELTA, **vars(trust)}
