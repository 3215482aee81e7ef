"""The paper's tables: which records enter them, in which place, with which figure of the paper and which marks."""

from __future__ import annotations

from itertools import product
from typing import Any

import fake_records as fake
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.defenses import FineTuning, Ibau
from bench import published
from bench.report import beside, cases, effect, figures, marks, paper, style, sweep_files, tables
from bench.report.figures import rounds
from bench.report.figures.maps import maps
from bench.report.groups import groups, variants
from bench.report.records_table import records as records_table
from bench.report.records_table import unscored
from bench.report.rows import Row, from_record
from bench.report.tables import Table, Titled, Value

PAIRS = [{"attack": attack, "target": target} for attack, target in published.TABLE_3_TARGETS.items()]


def case(defense: str = "ibau", acc: float = 0.98, asr: float = 0.02, /, **changes: Any) -> dict[str, Any]:
    """A record at the paper's setting on GTSRB; ``changes`` are of the cell."""
    shared = {"dataset": "gtsrb", "poison_ratio": 0.2, "clean_size": 5000}
    return fake.record(fake.cell(defense, **(shared | changes)), acc, asr)


def made(*records: dict[str, Any]) -> dict[str, Titled]:
    (group,) = groups([from_record(each) for each in records])
    return {titled.stem: titled for titled in paper.tables(group)}


def columns(table: Table, row: int) -> dict[tuple[str, str], Value]:
    return {(head.over, head.text): value for head, value in zip(table.heads, table.rows[row], strict=True)}


def test_attack_cases_stand_in_the_papers_order_with_its_figures_beside() -> None:
    several = [("trojan_wm", 2), ("badnets", "all_to_all"), ("blend", 1), ("badnets", 8)]
    records = [case(name, attack=a, target=t) for name in ("ibau", "nad", "none", "tabor") for a, t in several]
    titled = made(*records)["1_2_attack_cases"]
    assert titled.title.startswith("Table 2 ·")
    assert [row[0].text for row in titled.table.rows] == ["BadNets", "Blend", "Trojan WM", "All to all"]
    assert [text for text, _ in titled.table.bands] == ["", "No defense", "TABOR", "NAD", "I-BAU"]
    blend = columns(titled.table, 1)
    theirs = published.lookup("gtsrb", "blend", "nad")
    assert theirs is not None
    assert theirs.asr is not None
    assert blend["NAD", "ASR"].published == f"{100 * theirs.asr:.2f}"
    assert columns(titled.table, 3)["I-BAU", "ACC"].published == "99.13"


def test_no_figure_of_the_paper_stands_beside_another_setting() -> None:
    rows = [case(), case(radius=2.5), case(model="resnet18"), case(clean_label=True), case(dataset="digits")]
    rows += [case(target=0), case(poison_ratio=0.1)]
    assert [beside.one_trigger(from_record(row), 5000)[0] for row in rows] == ["99.38", *[""] * 6]
    assert beside.one_trigger(from_record(case()), 100) == ("", "")
    assert beside.one_trigger(from_record(case("fine_tuning")), 5000) == ("", "")


def test_the_papers_seconds_and_gaps_stand_beside_its_own_setting_alone() -> None:
    same = from_record(case())
    assert beside.effect([same, from_record(case(attack="blend", target=1))]) == "7.84"
    others = ({"target": 0}, {"clean_size": 500}, {"poison_ratio": 0.05}, {"radius": 2.5}, {"target": "all_to_all"})
    for change in (*others, {"attack": "sig"}, {"model": "resnet18"}):
        assert beside.effect([same, from_record(case(**change))]) == ""
    gaps = [from_record(wm(model="resnet18", target=target) | {"error_gap": 0.01}) for target in (2, 8)]
    assert [beside.gap(row) for row in gaps] == ["0.35", ""]


def test_how_the_papers_ibau_was_taken_is_said() -> None:
    assert "at the round whose ACC is about that of the most effective baseline" in beside.MEANING


def test_what_has_to_be_said_of_the_papers_figure_is_said() -> None:
    brought = {"checkpoint": "a/b.pth", "trigger": {"image": "c/l0_inv.png", "mode": "replace"}, "target": 0}
    changes = {"victim": brought, "attack": None, "target": None, "poison_ratio": None, "dataset": "cifar10_jpeg"}
    table = made(case(**changes))["1_2_attack_cases"].table
    assert table.rows[0][0].text == "ℓ0 inv"
    assert columns(table, 0)["I-BAU", "ASR"].published == "9.54†‡"
    assert sum(note.startswith(("†", "‡")) for note in table.notes) == 2


def test_marks_reach_the_table_and_are_explained() -> None:
    undetected = case("neural_cleanse", 0.98, 0.95) | {"status": "no_trigger_detected"}
    records = [case("none", 0.98, 0.99), undetected, case("nad", 0.5, 0.01), case("tabor", 0.97, 0.05), case()]
    table = made(*records)["1_2_attack_cases"].table
    row = columns(table, 0)
    assert row["Neural Cleanse", "ASR"].marks == (marks.ASR_HIGH, marks.UNDETECTED)
    assert row["NAD", "ACC"].marks == (marks.ACC_LOST,)
    assert row["TABOR", "ACC"].marks == row["TABOR", "ASR"].marks == (marks.BEST,)
    assert row["I-BAU", "ASR"].marks == (marks.COMPARABLE,)
    assert not row["No defense", "ASR"].marks
    told = next(note for note in table.notes if note.startswith("▲"))
    assert all(mark.symbol in told for mark in marks.ALL)


def test_a_trigger_that_was_missed_in_some_repetitions_is_told() -> None:
    missed = {"status": "no_trigger_detected"}
    records = [case("tabor", 0.98, 0.9, seed=0) | missed, case("tabor", seed=1), case("tabor", seed=2), case()]
    table = made(*records)["1_2_attack_cases"].table
    asr = columns(table, 0)["TABOR", "ASR"]
    assert asr.note.startswith("× in 1 of 3, ")
    assert marks.UNDETECTED not in asr.marks
    assert any("× no trigger detected" in note for note in table.notes)


def test_accuracy_under_attack_is_told_beside_and_radii_are_not_averaged() -> None:
    records = [
        case("nad", 0.9, 0.1, evasion_radius=radius, seed=seed)
        | {"evasion_accuracy": value, "evasion_accuracy_interval": [value - 0.1, value + 0.1]}
        for radius, seed, value in ((0.5, 0, 0.4), (0.5, 1, 0.6), (1.0, 2, 0.1))
    ]
    rows = [from_record(each) for each in records]
    assert rows[2].intervals["evasion_accuracy 1"] == (0.0, 0.2)
    beside_ = made(*records)["1_2_attack_cases"].beside
    assert beside_ is not None
    line = next(place for place, row in enumerate(beside_.rows) if row[1].text == "NAD")
    told = columns(beside_, line)
    assert (told["", "Under PGD 0.5"].text, told["", "Under PGD 1"].text) == ("50.0", "10.0")
    every = records_table(rows, variants(rows))
    heads = [head.text for head in every.table.heads]
    assert [row[heads.index("Under PGD 0.5")].text for row in every.table.rows] == ["40.0", "60.0", "–"]
    assert ("Under PGD 1, 95 % interval", "0.0–20.0 %") in every.details[2].facts
    other = made(case("nad"))["1_2_attack_cases"].beside
    assert other is not None
    assert not any("PGD" in head.text for head in other.heads)


def test_without_a_control_the_victim_itself_is_the_yardstick() -> None:
    table = made(case(seed=0), case(seed=1))["1_2_attack_cases"].table
    row = columns(table, 0)
    assert row["No defense", "ACC"].text == "98.8"
    assert row["No defense", "ACC"].estimate is not None
    assert row["No defense", "ACC"].estimate.count == 2


def test_training_a_victim_is_no_second_of_no_defense() -> None:
    beside = made(case(seed=0))["1_2_attack_cases"].beside
    assert beside is not None
    (undefended,) = (row for row in beside.rows if row[1].text == "No defense")
    told = {head.text: value.text for head, value in zip(beside.heads, undefended, strict=True)}
    assert told["Seconds"] == "–"
    assert told["RA"] == "1.5"


def test_the_interval_of_a_defended_model_is_not_that_of_its_victim() -> None:
    row = columns(made(case())["1_2_attack_cases"].table, 0)
    assert row["I-BAU", "ACC"].note
    assert not row["No defense", "ACC"].note


def test_a_defense_that_needs_no_clean_set_stands_beside_those_of_every_n() -> None:
    records = [case(clean_size=size) for size in (100, 5000)] + [case("dp_sgd", 0.9, clean_size=None)]
    table = made(*records)["5_clean_images"].table
    assert [columns(table, row)["", "DP-SGD"].text for row in (0, 2)] == ["90.0", "90.0"]


def test_a_heat_map_has_each_figure_where_its_axes_say() -> None:
    asrs = {(radius, size): asr for asr, (radius, size) in enumerate(product((1.0, 10.0), (100, 500, 5000)))}
    rows = [
        from_record(case("ibau", 0.9, asr / 10, radius=radius, clean_size=size)) for (radius, size), asr in asrs.items()
    ]
    (axes,) = maps(rows)[0].figure.axes
    told = {text.get_position(): text.get_text() for text in axes.texts}
    across, up = ([label.get_text() for label in each] for each in (axes.get_xticklabels(), axes.get_yticklabels()))
    assert (across, up) == (["100", "500", "5,000"], ["1", "10"])
    expected = {(n + 0.5, r + 0.5): f"{10 * (3 * r + n)}.0" for r in range(2) for n in range(3)}
    assert told == expected


@pytest.mark.parametrize("more", [{"tsne_images": 200}, {"evasion_radius": 0.5}, {"min_asr": 0.5}])
def test_a_run_that_was_recorded_again_for_more_is_one_repetition(more: dict[str, Any]) -> None:
    table = made(case(), case(**more), case("none"))["1_2_attack_cases"].table
    assert (
        columns(table, 0)["I-BAU", "ACC"].estimate
        == columns(made(case())["1_2_attack_cases"].table, 0)["I-BAU", "ACC"].estimate
    )
    assert "×2" not in " ".join(value.note for value in table.rows[0])


def test_the_number_of_seeds_is_told_once_or_at_each_figure() -> None:
    even = made(*(case(name, seed=k) for name in ("none", "ibau") for k in range(3)))["1_2_attack_cases"].table
    assert "×" not in "".join(value.note for row in even.rows for value in row)
    assert any("over 3 seeds" in note for note in even.notes)
    odd = made(case("none"), case(seed=0), case(seed=1))["1_2_attack_cases"].table
    assert columns(odd, 0)["I-BAU", "ACC"].note.endswith("×2")
    assert any("over seeds (×k: k of them), or for one seed the" in note for note in odd.notes)


@pytest.mark.parametrize(
    ("seeds", "runs", "kind"),
    [((0, 1, 2), (None,), "seeds"), ((0,), (None, 1, 2), "runs on one victim"), ((0, 1, 2), (None, 1), "repetitions")],
)
def test_runs_on_one_victim_are_not_called_seeds(seeds: list[int], runs: list[int | None], kind: str) -> None:
    more = [{"seed": seed, "run": run} for seed in seeds for run in runs]
    found = made(*(case(clean_size=size, **each) for size in (500, 5000) for each in more))
    assert any(f"over {len(more)} {kind}." in note for note in found["8_clean_images"].table.notes)
    titled = made(*(case(**each) for each in more), case("nad"))["1_2_attack_cases"]
    assert any(f"over {kind} (×k: k of them), or for one {kind.split()[0][:-1]} the" in n for n in titled.table.notes)
    assert titled.beside is not None
    assert titled.beside.notes[0].startswith(f"Mean over {kind};")


ALIKE_BUT = st.sampled_from(
    [
        {"training": fake.TRAINING | {"epochs": 3}},
        {"clean_label": True},
        {"clean_label": "adversarial"},
        {"mix": "disjoint"},
        {"model": "resnet18"},
        {"target": 3},
        {"poison_ratio": 0.05},
    ]
)


@given(ALIKE_BUT)
def test_victims_that_differ_are_never_in_one_mean(change: dict[str, Any]) -> None:
    rows = [from_record(case()), from_record(case(**change))]
    found = cases.lines(rows, variants(rows))
    assert len(found) == 2
    assert all(len(cell) == 1 for line in found for name, cell in line.cells.items() if name != cases.NO_DEFENSE)


def test_clean_label_lines_are_told_apart() -> None:
    rows = [from_record(case(**each)) for each in ({}, {"clean_label": True}, {"clean_label": "adversarial"})]
    found = cases.lines(rows, variants(rows))
    assert len(found) == 3
    apart, _ = cases.told_apart(found)
    assert sorted(apart) == ["", "clean label adversarial", "clean label yes"]
    assert beside.one_trigger(rows[2], 5000) == ("", "")


def test_lines_tell_what_differs_in_training_and_no_more() -> None:
    rows = [
        from_record(case(training=fake.TRAINING | more)) for more in ({}, {"epochs": 3}, {"epochs": 3, "peak_lr": 0.5})
    ]
    apart, notes = cases.told_apart(cases.lines(rows, variants(rows)))
    usual = f"training epochs {fake.TRAINING['epochs']}, training peak lr {fake.TRAINING['peak_lr']:g}"
    assert sorted(apart) == sorted(
        [
            usual,
            "training epochs 3, training peak lr 0.5",
            f"training epochs 3, training peak lr {fake.TRAINING['peak_lr']:g}",
        ]
    )
    assert not any("training" in note for note in notes)


def test_what_stands_beneath_is_told_where_something_does() -> None:
    def notes(*records: dict[str, Any]) -> str:
        found = made(*records)
        shown = [found[stem] for stem in ("1_2_attack_cases", "6_seconds_to_effect")]
        rows = [from_record(record) for record in records]
        every = [table for each in shown for table in (each.table, each.beside) if table]
        return " ".join(note for table in (*every, tables.summary(rows, variants(rows))) for note in table.notes)

    one, other = case(), case(seed=1) | {"seconds": 9.0, "seconds_to_effect": 2.0}
    assert "smallest to largest" not in notes(one)
    assert "Mean over seeds" not in notes(one)
    assert "Beneath a figure: the record's own 95 % interval." in notes(one)
    assert "Beneath" not in notes(one | {"acc_interval": None, "asr_interval": None})
    assert notes(one, other).count("smallest to largest beneath") == 3
    assert "Mean over seeds; smallest to largest beneath. Rates in percent." in notes(one, other)


def test_settings_that_are_no_defaults_stand_under_every_table() -> None:
    """Those that no name tells; of a defense that nobody here knows all that have a value."""
    tuned = {"name": "fine_tuning", **FineTuning().model_dump(mode="json"), "epochs": 2}
    ours = {"name": "ibau", **Ibau().model_dump(mode="json"), "rounds": 1}
    mine = {"name": "mine", "strength": 3, "mode": None}
    cells = [
        {"defense": defense, "poison_ratio": ratio, "seed": seed}
        for defense in (tuned, ours, mine, {"name": "none"})
        for ratio in (0.2, 0.05)
        for seed in (0, 1)
    ]
    told = "Settings: Fine-tuning epochs 2; mine strength 3; I-BAU recipe fast, rounds 1. "
    told += "Others stand with a defense's name or are its defaults."
    records = [case("ibau", **cell) for cell in cells]
    found = made(*records)
    for stem in ("1_2_attack_cases", "4_poison_ratio", "6_seconds_to_effect"):
        assert told in found[stem].table.notes
    rows = [from_record(record) for record in records]
    assert told in tables.summary(rows, variants(rows)).notes
    varied = case("fine_tuning", defense=tuned | {"epochs": 3})
    (note,) = [note for note in made(*records, varied)["1_2_attack_cases"].table.notes if note.startswith("Settings")]
    assert note.startswith("Settings: mine strength 3; I-BAU")


def test_training_that_is_no_mapping_stops_nothing() -> None:
    row = from_record(case(training=True))
    assert cases.told_apart(cases.lines([row], variants([row])))[0] == [""]


def test_repetitions_are_in_one_mean() -> None:
    rows = [from_record(case(**each)) for each in ({}, {"seed": 1}, {"run": 2})]
    (line,) = cases.lines(rows, variants(rows))
    assert len(line.cells["I-BAU"]) == 3


def several_triggers(defense: str = "ibau", **changes: Any) -> dict[str, Any]:
    record = case(defense, 0.8, 0.1, attack=PAIRS, target=None, dataset="cifar10", **changes)
    figures = [
        {"trigger": p["attack"], "target": p["target"], "asr": k / 10, "ra": 0.5, "count": 9}
        for k, p in enumerate(PAIRS)
    ]
    before = record["victim"] | {"triggers": [each | {"asr": 1.0} for each in figures]}
    return record | {"triggers": figures, "victim": before}


def test_table_3_has_a_row_for_each_trigger() -> None:
    titled = made(several_triggers())["3_several_triggers"]
    table = titled.table
    assert [row[0].text for row in table.rows[:3]] == ["ACC", "avg. ASR", "Trojan WM ⇒ 9"]
    assert len(table.rows) == 2 + len(PAIRS)
    ours = [columns(table, 2 + k)["", "I-BAU"] for k in range(len(PAIRS))]
    assert [value.text for value in ours] == [f"{10 * k:.1f}" for k in range(len(PAIRS))]
    assert [value.published for value in ours] == ["11.48", "10.80", "18.64", "15.22", "18.24", "9.46", "6.92"]
    assert [marks.ASR_HIGH in value.marks for value in ours] == [k >= 2 for k in range(len(PAIRS))]
    assert columns(table, 2)["", "No defense"].text == "100.0"
    assert columns(table, 1)["", "I-BAU"].published == "12.96"
    assert "1_2_attack_cases" not in made(several_triggers())


@pytest.mark.parametrize("change", [{"mix": "disjoint"}, {"clean_size": 500}, {"model": "resnet18"}])
def test_table_3_of_another_setting_stands_alone(change: dict[str, Any]) -> None:
    table = made(several_triggers(**change))["3_several_triggers"].table
    assert columns(table, 1)["", "I-BAU"].published == ""


def test_a_record_without_figures_of_its_triggers_has_the_average_alone() -> None:
    record = several_triggers() | {"triggers": []}
    record["victim"] = record["victim"] | {"triggers": "none"}
    assert [row[0].text for row in made(record)["3_several_triggers"].table.rows] == ["ACC", "avg. ASR"]


def wm(defense: str = "ibau", **changes: Any) -> dict[str, Any]:
    return case(defense, 0.8, 0.1, **({"dataset": "cifar10", "attack": "trojan_wm", "target": 2} | changes))


def test_tables_4_and_5_stack_acc_and_asr() -> None:
    records = [wm(poison_ratio=ratio) for ratio in (0.2, 0.05, 0.005)]
    records += [wm(clean_size=size) for size in (2500, 500, 100)]
    found = made(*records, wm(poison_ratio=0.05, clean_size=100))
    ratios = found["4_poison_ratio"].table
    assert [(row[0].text, row[1].text) for row in ratios.rows] == [
        (ratio, metric) for ratio in ("20 %", "5 %", "0.5 %") for metric in ("ACC", "ASR")
    ]
    assert [row[-1].published for row in ratios.rows] == ["83.58", "3.42", "84.76", "9.78", "83.22", "13.08"]
    sizes = found["5_clean_images"].table
    assert [row[0].text for row in sizes.rows[::2]] == ["5,000", "2,500", "500", "100"]
    assert [row[-1].published for row in sizes.rows[1::2]] == ["3.42", "6.96", "5.20", "4.00"]
    assert len(found["1_2_attack_cases"].table.rows) == 1
    assert any("other settings" in note for note in found["1_2_attack_cases"].table.notes)


def test_a_victim_with_one_value_of_an_axis_is_not_in_its_table() -> None:
    found = made(wm(clean_size=5000), wm(clean_size=100), wm(attack="blend", target=1))
    assert {row[0].note for row in found["5_clean_images"].table.rows} == {""}
    assert any("Trojan WM" in note for note in found["5_clean_images"].table.notes)
    assert "4_poison_ratio" not in found


def test_table_6_means_over_the_cells_that_took_effect() -> None:
    """And that have it at the end: of the last two one lost it again, and one its accuracy."""
    ends = ((2.0, 0.9, 0.1), (4.0, 0.9, 0.1), (None, 0.9, 0.1), (1.0, 0.9, 0.6), (1.0, 0.5, 0.1))
    records = [
        case("ibau", acc, asr, dataset="cifar10", attack="trojan_wm", target=2, seed=k) | {"seconds_to_effect": seconds}
        for k, (seconds, acc, asr) in enumerate(ends)
    ]
    found = made(*records, wm("none"), wm(attack="badnets", target="all_to_all"))["6_seconds_to_effect"].table
    (row,) = found.rows
    assert [value.text for value in row[:4]] == ["I-BAU", "3.00", "1.0", "2 of 5"]
    assert row[1].published == "6.82"
    assert "2 of 5 cells had effect in some round and not at the end; they count as without." in found.notes


def test_tables_7_and_8_give_the_error_gap() -> None:
    networks = [wm(model=name) | {"error_gap": 0.0035} for name in ("densenet121", "resnet18", "googlenet")]
    sizes = [wm(model="resnet18", clean_size=size) | {"error_gap": 0.01} for size in (500, 2500)]
    found = made(*networks, *sizes)
    width = found["7_width"].table
    assert [(row[0].text, row[2].text, row[3].text, row[3].published) for row in width.rows] == [
        ("resnet18", "512", "0.35", "0.35"),
        ("googlenet", "832", "0.35", "0.27"),
        ("densenet121", "1024", "0.35", "0.24"),
    ]
    over_n = found["8_clean_images"].table
    assert [(row[0].text, row[2].published) for row in over_n.rows] == [
        ("500", "1.67"),
        ("2,500", "0.71"),
        ("5,000", "0.35"),
    ]


@pytest.mark.parametrize(
    ("models", "told", "untold"),
    [
        (("simplified_vgg",), "for simplified_vgg, a chain of layers, is above 100 %", "skips"),
        (("resnet18",), "For resnet18 there is none: Theorem 3 is about chains", "100 %"),
        (("simplified_vgg", "resnet18"), "For resnet18 there is none", "For simplified_vgg"),
    ],
)
def test_why_no_bound_stands_beside_is_said_of_the_networks_there_are(
    models: tuple[str, ...], told: str, untold: str
) -> None:
    titled = made(*(wm(model=model, clean_size=size) for model in models for size in (500, 5000)))["8_clean_images"]
    (note,) = [note for note in titled.table.notes if note.startswith("No bound")]
    assert told in note
    assert untold not in note


def test_the_error_gap_is_drawn_over_width_and_over_n() -> None:
    networks = [wm(model=name) | {"error_gap": 0.0035} for name in ("densenet121", "resnet18", "googlenet")]
    sizes = [wm(model="resnet18", clean_size=size) | {"error_gap": 0.01} for size in (500, 2500)]
    (group,) = groups([from_record(each) for each in [*networks, *sizes]])
    with style.drawing():
        drawn = {plot.stem: plot.figure.axes[0].lines for plot in figures.draw(group) if plot.section == "gap"}
    assert list(drawn) == ["error-gap-by-width", "error-gap-by-clean-size"]
    (width,), (size,) = drawn.values()
    assert list(width.get_xdata()) == [512, 832, 1024]
    assert [*zip(size.get_xdata(), size.get_ydata(), strict=True)] == [(500, 0.01), (2500, 0.01), (5000, 0.0035)]


def test_victims_that_differ_have_a_line_each() -> None:
    rows = [wm(attack=attack, clean_size=size) for attack in ("trojan_wm", "badnets") for size in (500, 5000)]
    (group,) = groups([from_record(each | {"error_gap": 0.01}) for each in rows])
    with style.drawing():
        (plot,) = [plot for plot in figures.draw(group) if plot.section == "gap"]
    assert [line.get_label() for line in plot.figure.axes[0].lines] == ["I-BAU, BadNets", "I-BAU, Trojan WM"]


def test_what_a_defense_found_stands_with_its_record() -> None:
    record = case("dp_sgd") | {"details": {"epsilon": 4.4, "steps": 300, "pruned": list(range(1000))}}
    row = from_record(record)
    facts = dict(records_table([row], {row.id: "DP-SGD"}).details[0].facts)
    assert (facts["epsilon"], facts["steps"]) == ("4.4", "300")
    assert facts["pruned"].endswith("…")


def test_other_radii_are_kept_out_and_told_of() -> None:
    found = made(case(radius=10.0), case(radius=2.5, seed=1))
    assert any("Cδ = 10" in note for note in found["1_2_attack_cases"].table.notes)
    assert [row[0].text for row in found["radius"].table.rows] == ["I-BAU, Cδ = 2.5", "I-BAU, Cδ = 10"]


def test_ra_der_time_memory_and_passes_stand_beside() -> None:
    table = made(case("none"), case())["1_2_attack_cases"].beside
    assert table is not None
    assert {"RA", "DER", "Seconds", "Peak memory", "Forward", "Backward"} <= {head.text for head in table.heads}
    assert [row[1].text for row in table.rows] == ["No defense", "I-BAU"]
    assert "–" not in [value.text for value in table.rows[1]]


def test_a_clean_model_has_a_table_of_its_own() -> None:
    record = case(attack=None, target=None, poison_ratio=None) | {"asr": None, "asr_interval": None}
    row = from_record(record)
    assert unscored([row], {row.id: "I-BAU"}) is None
    found = made(record)
    assert list(found) == ["clean_models"]
    rows = [row, from_record(case(seed=1)), from_record(fake.unscored(fake.cell(), "failed", "x"))]
    cells = tables.summary(rows, {each.id: "I-BAU" for each in rows}).rows[0][1]
    assert (cells.text, cells.note) == ("1", "1 not scored, 1 of a clean model")
    assert [value.text for value in found["clean_models"].table.rows[0][:4]] == [
        "I-BAU",
        "simplified_vgg",
        "98.8",
        "98.0",
    ]


def assigned(parts: dict[str, list[dict[str, Any]]]) -> list[Row]:
    rows = [from_record(record) for records in parts.values() for record in records]
    cells = {name: frozenset(record["id"] for record in records) for name, records in parts.items()}
    return sweep_files.assign(rows, sweep_files.SweepFiles("", cells, ()))


def test_the_rounds_of_figure_1_are_its_curves() -> None:
    runs = [case(run=run, seed=0) for run in (None, 1, 2)]
    (group,) = groups(assigned({"figure1": runs, "table8": [case(model="resnet18")]}))
    with style.drawing():
        drawn = {plot.stem: plot.figure.axes[0].lines for plot in figures.draw(group) if plot.section == "rounds"}
    assert list(drawn) == ["asr-rounds-figure1", "acc-rounds-figure1"]
    assert [len(lines) for lines in drawn.values()] == [3, 3]
    assert list(drawn["asr-rounds-figure1"][0].get_xdata()) == [0, 1, 2, 3]


def test_studies_without_table_1_and_6_have_the_trade_off_and_the_seconds_all_the_same() -> None:
    (group,) = groups(assigned({"table4": [wm(), wm(poison_ratio=0.05)], "table5": [wm("nad"), wm(clean_size=100)]}))
    found = {titled.stem: titled.table for titled in paper.tables(group)}
    assert [row[0].text for row in found["6_seconds_to_effect"].rows] == ["NAD", "I-BAU"]
    assert any("poison ratio 20 % and n = 5,000" in note for note in found["6_seconds_to_effect"].notes)
    with style.drawing():
        assert "trade-off" in {plot.section for plot in figures.draw(group)}


def test_a_table_takes_the_records_of_its_own_sweep_file() -> None:
    ablated = case(defense={"name": "ibau", "recipe": "paper"})
    rows = assigned({"table2": [case()], "ablation": [ablated]})
    (group,) = groups(rows)
    found = {titled.stem: titled.table for titled in paper.tables(group)}
    assert [text for text, _ in found["1_2_attack_cases"].bands] == ["", "No defense", "I-BAU"]
    assert len(found["ablation"].rows) == 1
    assert sweep_files.of(rows, "table2") == rows[:1]
    assert sweep_files.of(rows, "table1") == []
    assert sweep_files.of([from_record(case())], "table1") == [from_record(case())]


def test_curves_leave_out_models_that_are_never_returned() -> None:
    """NAD's teacher is no curve of NAD; its rounds keep their numbers."""
    told = [
        {"acc": 0.9, "asr": 0.1, "asr_by_trigger": {"badnets": 0.1}, "helper": teacher} for teacher in (True, False)
    ]
    row = from_record(wm("nad") | {"rounds": told})
    assert [index for index, _ in rounds._trace(row, "asr")] == [0, 2]
    assert list(rounds._trigger_curves([row])["badnets"]) == [2]


def test_passes_of_table_6_are_those_of_a_clean_image() -> None:
    record = wm() | {"seconds_to_effect": 2.0, "passes": {"forward": 30_000, "backward": 25_000}}
    (row,) = made(record)["6_seconds_to_effect"].table.rows
    assert row[5].text == "11"  # of 5,000


def test_tables_7_and_8_are_at_one_poison_ratio() -> None:
    gaps = {0.2: (0.02, 0.01), 0.05: (0.5, 0.4)}
    records = [
        wm(clean_size=size, poison_ratio=ratio) | {"error_gap": gap}
        for ratio, each in gaps.items()
        for size, gap in zip((500, 5000), each, strict=True)
    ]
    assert [row[2].text for row in made(*records)["8_clean_images"].table.rows] == ["2.00", "1.00"]


def test_a_trigger_with_settings_of_its_own_is_not_in_table_6() -> None:
    attacks: tuple[Any, ...] = ("badnets", {"name": "badnets", "size": 5})
    rows = [from_record(case(attack=attack) | {"seconds_to_effect": 2.0}) for attack in attacks]
    assert [row.changed_trigger for row in rows] == [False, True]
    assert [row.attack for row in effect.chosen(rows)[0]] == ["badnets"]
