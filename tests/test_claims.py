"""The verdicts on the paper's claims: from means of scored records, and none where records do not bear on a claim."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import fake_records as fake
import pytest
import torch

from bench.intervals import Z
from bench.report import effect, gaps, settings
from bench.report.claims import claims
from bench.report.names import DOES_NOT, HOLDS, IN_PART, UNDECIDED
from bench.report.rows import Row, from_record

RATIO, FEW, ONLY_FEW, ONLY, STABLE, FASTER, WIDTH, SIZE = (
    "poison ratio", "Effective with 100", "only defense effective with 100", "effective in all", "stable", "13 times",
    "the width", "the clean images",
)  # fmt: skip


def case(defense: str = "ibau", asr: float = 0.02, /, acc: float = 0.98, **changes: Any) -> Row:
    figures = {key: changes.pop(key) for key in ("error_gap", "seconds_to_effect", "provenance") if key in changes}
    shared = {"dataset": "gtsrb", "poison_ratio": 0.2, "clean_size": 5000}
    return from_record(fake.record(fake.cell(defense, **(shared | changes)), acc, asr, **figures))


def broken(row: Row, status: str) -> Row:
    return replace(row, status=status)


def verdict(part: str, *rows: Row) -> str | None:
    """The word on the one claim whose text holds ``part``."""
    found = claims(rows)
    words = [row[1].text for row in found.table.rows if part in row[0].text] if found else []
    assert len(words) < 2
    return words[0] if words else None


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((0.01, 0.02), (0.0, 0.1), HOLDS),
        ((0.01, 0.15), (0.0, 0.1), IN_PART),  # effective at all ratios, and the other varies less
        ((0.01, 0.3), (0.0, 0.5), IN_PART),  # varies least, and is not effective everywhere
        ((0.01, 0.9), (0.0, 0.1), DOES_NOT),
        ((0.01, 0.15), (0.9, 0.9), HOLDS),  # what never works cannot be steady
        ((0.01, 0.9), (0.9, 0.9), DOES_NOT),  # nor is it a rival that one could be steadier than
        ((0.9, 0.99), (0.9, 0.9), DOES_NOT),  # and that goes for I-BAU
        ((0.9, 0.91), (0.0, 0.5), DOES_NOT),
    ],
)
def test_sensitivity_to_the_poison_ratio(ours: tuple[float, float], theirs: tuple[float, float], expected: str) -> None:
    rows = [
        case(name, asr, poison_ratio=ratio)
        for name, each in (("ibau", ours), ("nad", theirs))
        for ratio, asr in zip((0.2, 0.05), each, strict=True)
    ]
    control = [case("fine_tuning", 0.05, poison_ratio=ratio) for ratio in (0.2, 0.05)]
    assert verdict(RATIO, *rows) == verdict(RATIO, *rows, *control) == expected
    assert verdict(RATIO, *rows[:2], *control) is None  # without any baseline there is no least sensitive one
    assert verdict(RATIO, rows[0], rows[2]) is None


def test_what_broke_down_is_neither_effective_nor_steady() -> None:
    """Whatever figures it left."""
    ours = [case("ibau", 0.01 * k, poison_ratio=ratio) for k, ratio in enumerate((0.2, 0.05, 0.005))]
    nad = [case("nad", 0.01, poison_ratio=ratio) for ratio in (0.2, 0.05)]
    late = [broken(case("nad", 0.01, poison_ratio=0.005), status) for status in ("diverged", "timeout")]
    assert verdict(RATIO, *ours, *nad) == IN_PART
    assert [verdict(RATIO, *ours, *nad, each) for each in late] == [HOLDS, HOLDS]
    assert verdict(RATIO, *ours[:2], broken(ours[2], "diverged"), *nad, late[0]) == IN_PART
    no_figures = replace(late[1], figures={})
    assert verdict(RATIO, *ours, *nad, no_figures) == HOLDS

    few = [case("ibau", clean_size=100, attack=attack) for attack in ("badnets", "blend")]
    assert verdict(FEW, few[0], broken(few[1], "timeout")) == IN_PART
    assert not broken(few[1], "failed").tried  # which says nothing of the defense
    useless = [case("nad", 0.9, attack=attack, clean_size=100) for attack in ("badnets", "blend")]
    assert verdict(ONLY, *few, *useless) == HOLDS
    assert verdict(ONLY, few[0], broken(few[1], "diverged"), *useless) == IN_PART


def test_sensitivity_is_compared_over_the_ratios_that_both_ran() -> None:
    ours = [case("ibau", asr, poison_ratio=ratio) for asr, ratio in ((0.0, 0.2), (0.01, 0.05), (0.1, 0.005))]
    nad = [case("nad", asr, poison_ratio=ratio) for asr, ratio in ((0.0, 0.2), (0.05, 0.05))]
    assert verdict(RATIO, *ours, *nad) == HOLDS
    found = claims([*ours, *nad])
    assert found is not None
    (told,) = (row[2].text for row in found.table.rows if RATIO in row[0].text)
    end = "I-BAU 10.0 points; NAD 5.0 points (there I-BAU 1.0 points); beside 1 of the paper's 6 baselines"
    assert told.endswith(end)


def test_where_no_baseline_is_effective_the_verdict_says_so() -> None:
    rows = [case(name, asr, poison_ratio=ratio) for name, asr in (("ibau", 0.0), ("nad", 0.9)) for ratio in (0.2, 0.05)]
    found = claims(rows)
    assert found is not None
    (told,) = (row[2].text for row in found.table.rows if RATIO in row[0].text)
    assert told.endswith("I-BAU 0.0 points; no baseline is effective at any; beside 0 of the paper's 6 baselines")


@pytest.mark.parametrize(("asr", "other", "expected"), [(0.1, 0.1, HOLDS), (0.1, 0.3, IN_PART), (0.3, 0.3, DOES_NOT)])
def test_few_clean_images(asr: float, other: float, expected: str) -> None:
    rows = [case("ibau", asr, clean_size=100), case("ibau", other, clean_size=100, attack="blend"), case("ibau", 0.0)]
    assert verdict(FEW, *rows) == expected
    assert verdict(FEW, rows[-1]) is None


def test_few_clean_images_are_a_hundred_or_the_most_there_are_below() -> None:
    """One image of which nothing can be learnt decides nothing where there are records of 45, nor these beside 100."""
    one = [case(name, 0.9, clean_size=1) for name in ("ibau", "nad")]
    some = [case("ibau", 0.0, clean_size=45), case("nad", 0.9, clean_size=45)]
    hundred = [case("ibau", 0.9, clean_size=100), case("nad", 0.0, clean_size=100)]

    def told(*rows: Row) -> list[tuple[str, ...]]:
        found = claims(rows)
        assert found is not None
        return [tuple(value.text for value in row[1:]) for row in found.table.rows if "100 clean images" in row[0].text]

    beside = "beside 1 of the paper's 6 baselines"
    assert told(*one, *some) == [
        (HOLDS, "at n = 45: effective in: I-BAU 1 of 1; NAD 0 of 1"),
        (HOLDS, f"at n = 45: effective in: I-BAU 1 of 1; NAD 0 of 1; {beside}"),
    ]
    assert told(*one, *some, *hundred, case("ibau", 0.0)) == [
        (DOES_NOT, "effective in: I-BAU 0 of 1; NAD 1 of 1"),
        (DOES_NOT, f"effective in: I-BAU 0 of 1; NAD 1 of 1; {beside}"),
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((0.1, 0.1), (0.9, 0.9), HOLDS),
        ((0.1, 0.1), (0.9, 0.1), IN_PART),  # a baseline works too, in fewer
        ((0.1, 0.9), (0.9, 0.9), IN_PART),
        ((0.1, 0.1), (0.1, 0.1), DOES_NOT),
        ((0.9, 0.9), (0.9, 0.9), DOES_NOT),
    ],
)
def test_the_only_one_effective_at_few_clean_images(
    ours: tuple[float, float], theirs: tuple[float, float], expected: str
) -> None:
    attacks = ("badnets", "blend")
    rows = [
        case(name, asr, attack=attack, clean_size=100)
        for name, each in (("ibau", ours), ("nad", theirs), ("fine_tuning", (0.0, 0.0)))
        for attack, asr in zip(attacks, each, strict=True)
    ]
    more = [case("tabor", 0.0, attack=attack) for attack in attacks]  # of many images
    assert verdict(ONLY_FEW, *rows, *more) == expected
    assert verdict(ONLY_FEW, *rows[:2], *rows[4:], *more) is None
    assert verdict(FEW, *rows) == (HOLDS if ours == (0.1, 0.1) else IN_PART if min(ours) < 0.2 else DOES_NOT)


def test_losing_more_than_ten_points_of_acc_is_not_effective() -> None:
    assert verdict(FEW, case("ibau", 0.0, acc=0.80, clean_size=100)) == DOES_NOT


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((0.0, 0.1), (0.0, 0.9), HOLDS),
        ((0.0, 0.1), (0.0, 0.1), IN_PART),  # not the only one
        ((0.0, 0.9), (0.9, 0.9), IN_PART),
        ((0.0, 0.9), (0.0, 0.9), DOES_NOT),  # not everywhere, and not more often
        ((0.0, 0.9), (0.0, 0.0), DOES_NOT),
        ((0.9, 0.9), (0.9, 0.9), DOES_NOT),  # nobody is
    ],
)
def test_the_only_one_effective_everywhere(
    ours: tuple[float, float], theirs: tuple[float, float], expected: str
) -> None:
    attacks = ("badnets", "blend")
    rows = [
        case(name, asr, attack=attack)
        for name, each in (("ibau", ours), ("tabor", theirs))
        for attack, asr in zip(attacks, each, strict=True)
    ]
    assert verdict(ONLY, *rows) == expected
    assert verdict(ONLY, *rows[:2]) is None


def test_the_only_one_is_compared_where_both_ran_and_with_baselines_alone() -> None:
    """TABOR works wherever it ran, in some of the settings in which I-BAU works too; a control decides nothing."""
    attacks = ("badnets", "blend", "smooth", "sig")
    ours = [case("ibau", 0.9 if attack == "sig" else 0.0, attack=attack) for attack in attacks]
    tabor = [case("tabor", 0.0, attack=attack) for attack in attacks[:2]]
    nad = [case("nad", 0.9, attack=attack) for attack in (*attacks, "wanet")]
    control = [case("fine_tuning", 0.0, attack=attack) for attack in attacks]
    found = claims([*ours, *tabor, *nad, *control])
    assert found is not None
    (line,) = [[value.text for value in row[1:]] for row in found.table.rows if ONLY in row[0].text]
    told = "effective in: I-BAU 3 of 4; TABOR 2 of 2 (there I-BAU 2); NAD 0 of 4; not among the paper's baselines: "
    assert line == [DOES_NOT, f"{told}Fine-tuning 4 of 4; beside 2 of the paper's 6 baselines"]
    assert verdict(ONLY, *ours[:3], *nad[3:], *control) is None  # NAD ran elsewhere
    assert verdict(ONLY, *ours[:3], *nad, *control) == HOLDS


def test_stability_is_compared_case_by_case_over_runs() -> None:
    def runs(name: str, spread: float, attack: str) -> list[Row]:
        return [case(name, 0.1 + spread * k, attack=attack, seed=k) for k in range(3)]

    steady, shaky = (lambda name, attack: runs(name, 0.01, attack)), (lambda name, attack: runs(name, 0.2, attack))
    one = [*steady("ibau", "badnets"), *shaky("naive_uap", "badnets")]
    assert verdict(STABLE, *one) == HOLDS
    assert verdict(STABLE, *one, *shaky("ibau", "blend"), *steady("naive_uap", "blend")) == IN_PART
    assert verdict(STABLE, *shaky("ibau", "badnets"), *steady("naive_uap", "badnets")) == DOES_NOT
    assert verdict(STABLE, *one[:5]) is None  # two runs show no spread
    found = claims(one)
    assert found is not None
    (told,) = (row[2].text for row in found.table.rows if STABLE in row[0].text)
    assert told.endswith("2.0 points against 40.0 points; 1 case; effective in 3 of 3 runs against 1 of 3")
    other = [replace(row, id=f"{row.id}'", settings={"batch_norm": "eval"}) for row in steady("naive_uap", "badnets")]
    assert verdict(STABLE, *one, *other) == IN_PART  # than one way to do it, not than the other


@pytest.mark.parametrize(("theirs", "expected"), [(26.1, HOLDS), (26.0, IN_PART), (2.0, DOES_NOT)])
def test_times_faster_than_the_quickest_baseline(theirs: float, expected: str) -> None:
    ours = case("ibau", seconds_to_effect=2.0)
    useless = [case("fine_pruning", 0.9, attack=a, seconds_to_effect=None) for a in ("badnets", "blend")]
    everywhere = case("nad", 0.0, target="all_to_all", seconds_to_effect=0.1)  # not a single-target case
    rows = [ours, case("nad", seconds_to_effect=theirs), case("tabor", seconds_to_effect=99.0), *useless, everywhere]
    assert verdict(FASTER, *rows) == expected
    assert verdict(FASTER, ours, *useless) is None


def test_quick_where_it_works_is_not_quick_where_it_fails() -> None:
    ours = [case("ibau", seconds_to_effect=2.0), case("ibau", 0.9, attack="blend", seconds_to_effect=None)]
    theirs = [case("nad", seconds_to_effect=99.0), case("nad", 0.9, attack="blend", seconds_to_effect=None)]
    assert verdict(FASTER, *ours, *theirs) == HOLDS
    works = case("tabor", attack="blend", seconds_to_effect=200.0)
    shared = case("tabor", seconds_to_effect=200.0)
    assert verdict(FASTER, *ours, *theirs, works, shared) == IN_PART
    found = claims([*ours, *theirs, works, shared])
    assert found is not None
    (told,) = (row[2].text for row in found.table.rows if FASTER in row[0].text)
    assert told.endswith("no effect of I-BAU where a baseline had it: 1 cell")


def test_one_verdict_on_the_times_faster_in_both_places() -> None:
    """Only shared cells at the paper's setting count, and no control decides."""
    ours = [case("ibau", seconds_to_effect=2.0, seed=seed) for seed in (0, 1)]
    here = [case("ibau", seconds_to_effect=90.0, clean_size=100), case("nad", seconds_to_effect=9.0, clean_size=100)]
    theirs = [case("nad", seconds_to_effect=20.0), case("nad", 0.9, seconds_to_effect=None, seed=1)]
    control = case("fine_tuning", seconds_to_effect=4.0)
    rows = [*ours, *here, *theirs, case("nad", seconds_to_effect=1.0, attack="blend"), control]
    told = "10.0× (NAD, the quickest of 1 of the 5 baselines in the paper's Table 6, 1 shared cell); not among them: "
    told += "Fine-tuning 2.0×"
    found = claims(rows)
    assert found is not None
    (line,) = [[value.text for value in row[1:]] for row in found.table.rows if FASTER in row[0].text]
    assert line == [IN_PART, told]
    notes = effect.titled(*effect.chosen(rows)).table.notes
    assert [note for note in notes if note.endswith(f"Here: {told}. The claim {IN_PART}.")]
    assert verdict(FASTER, *ours, control) is None


def test_seconds_of_several_devices_are_not_compared() -> None:
    there = case("nad", seconds_to_effect=99.0, provenance={"device": "another"})
    assert verdict(FASTER, case("ibau", seconds_to_effect=2.0), there) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.3, 0.2, 0.1), HOLDS),
        ((0.3, 0.1, 0.2), IN_PART),
        ((0.1, 0.2, 0.3), DOES_NOT),
        ((0.015, 0.01, 0.005), UNDECIDED),
    ],
)
def test_the_gap_over_width_and_over_clean_images(values: tuple[float, ...], expected: str) -> None:
    networks = ("resnet18", "googlenet", "densenet121")
    widths = [case("ibau", error_gap=gap, model=name) for name, gap in zip(networks, values, strict=True)]
    assert verdict(WIDTH, *widths) == expected
    assert verdict(WIDTH, widths[0]) is None
    sizes = [case("ibau", error_gap=gap, clean_size=n) for n, gap in zip((500, 2500, 5000), values, strict=True)]
    assert verdict(SIZE, *reversed(sizes)) == expected
    assert verdict(SIZE, sizes[0]) is None


def test_gaps_of_different_victims_are_not_averaged() -> None:
    """The one falls from high up and lacks the smallest n; the other falls too, far below."""
    low = [case("ibau", error_gap=gap, clean_size=n) for n, gap in ((500, 0.14), (2500, 0.13), (5000, 0.12))]
    high = [case("ibau", error_gap=gap, clean_size=n, attack="blend") for n, gap in ((2500, 0.3), (5000, 0.2))]
    assert verdict(SIZE, *low, *high) == HOLDS
    assert verdict(SIZE, *low, *high[1:], case("ibau", error_gap=0.1, clean_size=2500, attack="blend")) == IN_PART


def test_gaps_are_those_of_the_table() -> None:
    rising = [case("ibau", error_gap=gap, clean_size=n, attack="blend") for n, gap in ((500, 0.0), (5000, 0.1))]
    sizes = [case("ibau", error_gap=gap, clean_size=n) for n, gap in ((500, 0.2), (5000, 0.1))]
    table = [replace(row, parts=frozenset({"table8"})) for row in sizes]
    assert verdict(SIZE, *(replace(row, parts=frozenset({"table1"})) for row in rising), *table) == HOLDS


def test_a_gap_of_nothing_removed_is_no_gap() -> None:
    """Under a backdoor that is still there all triggered images err, in the clean set as among the test images."""
    still = case("ibau", 0.99, error_gap=0.0, clean_size=5000)
    sizes = [case("ibau", error_gap=gap, clean_size=n) for n, gap in ((500, 0.2), (2500, 0.1), (5000, 0.3))]
    assert verdict(SIZE, *sizes[:2], still) == HOLDS
    assert verdict(SIZE, sizes[0], still) is None
    found = claims([*sizes, still])
    assert found is not None
    (told,) = (row[2].text for row in found.table.rows if SIZE in row[0].text)
    assert told.endswith("left out, for the defense had no effect: 1 of 4 records")


def test_every_way_to_run_ibau_has_a_line_of_its_own() -> None:
    fast = {"name": "ibau", "recipe": "fast"}
    rows = [case("ibau", asr, clean_size=100, **more) for asr, more in ((0.0, {"defense": fast}), (0.9, {}))]
    found = claims(rows)
    assert found is not None
    assert {(row[0].note, row[1].text) for row in found.table.rows} == {
        ("I-BAU (recipe fast)", HOLDS),
        ("I-BAU (recipe reference, rounds 3)", DOES_NOT),
    }


def test_without_ibau_there_are_no_claims() -> None:
    assert claims([case("nad"), case("none")]) is None
    assert claims([]) is None


def test_equal_variation_is_least_sensitive_too() -> None:
    rows = [case(name, asr, poison_ratio=ratio) for name in ("ibau", "nad") for ratio, asr in ((0.2, 0.0), (0.05, 0.1))]
    assert verdict(RATIO, *rows) == HOLDS


def test_one_effective_baseline_of_several_is_enough_against_the_only_one() -> None:
    def rows(name: str, *asrs: float) -> list[Row]:
        return [
            case(name, asr, attack=attack, clean_size=100)
            for attack, asr in zip(("badnets", "blend"), asrs, strict=True)
        ]

    ours, useless, rival = rows("ibau", 0.0, 0.0), rows("nad", 0.9, 0.9), rows("tabor", 0.0, 0.0)
    assert [verdict(part, *ours, *useless) for part in (ONLY_FEW, ONLY)] == [HOLDS, HOLDS]
    assert verdict(ONLY_FEW, *ours, *useless, *rival) == DOES_NOT
    assert verdict(ONLY, *ours, *useless, *rival) == IN_PART


def test_one_setting_alone_is_not_everywhere() -> None:
    ours = [case("ibau", attack=attack) for attack in ("badnets", "blend")]
    assert verdict(ONLY, *ours, case("nad", 0.9)) is None
    assert verdict(ONLY, *ours, case("nad", 0.9), case("nad", 0.9, attack="blend")) == HOLDS


def test_ways_to_run_a_baseline_that_share_the_settings_out_count_together() -> None:
    """A failure in the one setting of a way counts; an effect there is no claim to all settings."""
    ours = [case("ibau", attack=attack) for attack in ("badnets", "blend")]

    def two(*asrs: float) -> list[Row]:
        ways = [{"name": "dp_sgd", "epochs": epochs} for epochs in (2, 5)]
        return [
            case("dp_sgd", asr, attack=attack, defense=way)
            for asr, attack, way in zip(asrs, ("badnets", "blend"), ways, strict=True)
        ]

    assert verdict(ONLY, *ours, *two(0.9, 0.9)) == HOLDS
    assert verdict(ONLY, *ours, *two(0.9, 0.0)) == HOLDS
    assert verdict(ONLY, *ours, *two(0.0, 0.0)) is None


def test_ibau_that_broke_down_is_no_quicker_for_it() -> None:
    """A cell on which it diverged is one without effect, as one on which it left the backdoor."""
    ours = [case("ibau", seconds_to_effect=2.0), case("ibau", attack="blend", seconds_to_effect=1.0)]
    theirs = [case("nad", seconds_to_effect=99.0), case("nad", attack="blend", seconds_to_effect=99.0)]
    assert verdict(FASTER, *ours, *theirs) == HOLDS
    for status in ("diverged", "timeout"):
        assert verdict(FASTER, ours[0], broken(ours[1], status), *theirs) == IN_PART
        assert verdict(FASTER, broken(ours[0], status), broken(ours[1], status), *theirs) is None
    lines = effect.titled(*effect.chosen([ours[0], broken(ours[1], "diverged"), *theirs])).table.rows
    assert {line[0].text: (line[3].text, line[4].text) for line in lines}["I-BAU"][0] == "1 of 2"


def test_what_sampling_gives_a_gap() -> None:
    """Simulated: shares of two samples of unlike size, of one error."""
    generator = torch.Generator().manual_seed(0)
    clean, test = torch.rand(4000, 100, generator=generator), torch.rand(4000, 2000, generator=generator)
    gaps_ = ((clean < 0.3).float().mean(dim=1) - (test < 0.3).float().mean(dim=1)).abs()
    row = replace(case("ibau", clean_size=100), figures={"ra": 0.7}, intervals={"ra": (0.67961, 0.7197)})
    error = gaps.sampling_error([row])
    assert error is not None
    assert gaps.expected(error) == pytest.approx(float(gaps_.mean()), rel=0.04)
    assert float((gaps_ > Z * error).float().mean()) == pytest.approx(0.05, abs=0.02)
    assert gaps.sampling_error([replace(row, intervals={})]) is None
    assert [gaps.sampling_error([replace(row, clean_size=size)]) for size in (None, 0.0, -1.0)] == [None] * 3
    assert gaps.sampling_error([]) is None


@pytest.mark.parametrize(("values", "expected"), [((0.3, 0.3, 0.1), HOLDS), ((0.2, 0.2, 0.2), DOES_NOT)])
def test_a_gap_may_rest_on_its_way_but_has_to_end_lower(values: tuple[float, ...], expected: str) -> None:
    sizes = [case("ibau", error_gap=gap, clean_size=n) for n, gap in zip((500, 2500, 5000), values, strict=True)]
    assert verdict(SIZE, *sizes) == expected


def test_verdicts_are_at_one_radius() -> None:
    at = [case("ibau", asr, clean_size=100, radius=radius) for radius, asr in ((10.0, 0.0), (5.0, 0.9))]
    assert verdict(FEW, *at) == HOLDS
    assert verdict(FEW, at[1]) == DOES_NOT


@pytest.mark.parametrize("status", ["diverged", "timeout"])
def test_one_broken_repetition_is_no_effect_whatever_the_others_reach(status: str) -> None:
    good, other = (case("ibau", 0.0, clean_size=100, seed=seed) for seed in (0, 1))
    assert verdict(FEW, good, other) == HOLDS
    assert verdict(FEW, good, broken(other, status)) == DOES_NOT


def test_acc_is_lost_against_the_mean_of_the_victims() -> None:
    rows = [
        replace(case("ibau", 0.0, acc=0.84, clean_size=100, seed=seed), before={"acc": acc, "asr": 0.98})
        for seed, acc in enumerate((0.9, 1.0))
    ]
    assert verdict(FEW, *rows) == verdict(FEW, *reversed(rows)) == DOES_NOT


def test_the_victim_whose_asr_varies_most_counts() -> None:
    ours = [case("ibau", asr, poison_ratio=ratio, attack=attack) for attack, far in (("badnets", 0.01), ("blend", 0.15))
            for ratio, asr in ((0.2, 0.0), (0.05, far))]  # fmt: skip
    nad = [case("nad", asr, poison_ratio=ratio, attack=attack) for attack in ("badnets", "blend")
           for ratio, asr in ((0.2, 0.0), (0.05, 0.05))]  # fmt: skip
    assert verdict(RATIO, *ours, *nad) == IN_PART
    assert verdict(RATIO, *ours[:2], *nad[:2]) == HOLDS


def test_where_the_papers_setting_is_not_there_the_largest_is_held_fixed() -> None:
    rows = [case("ibau", clean_size=size, radius=2.5) for size in (50, 900, 100)]
    assert settings.setting(rows, "clean_size", 5000) == 900
    assert settings.setting([*rows, case("ibau")], "clean_size", 5000) == 5000
    assert settings.setting([], "clean_size", 5000) is None
