"""Promises of recipes that are compared within a seed: the gate, the intervals, the power."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from paired_studies import paired_folder, paired_study

from mambaout.errors import WrongRequest
from mambaout.recipe import tuned
from mambaout.study.law.paired import (
    Gate,
    PairedDifference,
    gate_of,
    holm,
    paired_difference,
)
from mambaout.study.law.power import paired_detectable, paired_seeds
from mambaout.study.law.seeds import SeedMean
from mambaout.study.pairing import pairing_from_json
from mambaout.study.price.foresight import KnownSpread
from mambaout.study.price.paired_foresight import paired_lines, seeds_to_detect_pairs
from mambaout.study.report.findings import answer
from mambaout.study.report.reading import read
from mambaout.study.report.study_report import summary, write_report
from mambaout.study.study import Study, StudyFolder

OPEN = {"identity": -4.0, "gated_conv": 0.0, "conv_ssm": 2.0, "attention": 0.0}
SHUT = OPEN | {"identity": 0.0}
SD = 0.8
ASSUMED = KnownSpread(SD, 0, "nothing is known")


def differences(rng: np.random.Generator, true: float, num_seeds: int) -> PairedDifference:
    """Of two recipes whose seeds share 3 points and have 0.8 of their own."""
    shared = 3 * rng.standard_normal(num_seeds)

    def mean(top1: float) -> SeedMean:
        values = top1 + shared + SD * rng.standard_normal(num_seeds)
        return SeedMean(tuple(values), 10, tuple(range(num_seeds)))

    return paired_difference(mean(80 + true), mean(80.0))


# -- the law --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_seeds", [2, 5, 20])
def test_95_of_100_intervals_hold_the_true_difference_whatever_the_seeds_share(num_seeds):
    rng = np.random.default_rng(num_seeds)
    intervals = [differences(rng, 0.5, num_seeds).interval for _ in range(1000)]
    held = sum(one.low <= 0.5 <= one.high for one in intervals) / 1000
    assert held == pytest.approx(0.95, abs=0.021)  # three standard errors of 1000 studies


def test_80_of_100_studies_find_the_difference_that_the_plan_names():
    rng = np.random.default_rng(1)
    for num_seeds in (5, 20):
        true = paired_detectable(SD, num_seeds)
        found = [differences(rng, true, num_seeds).interval.low > 0 for _ in range(1000)]
        assert sum(found) / 1000 == pytest.approx(0.8, abs=0.06)
    needed = paired_seeds(SD, 0.5)
    assert needed is not None
    assert paired_detectable(SD, needed) <= 0.5 < paired_detectable(SD, needed - 1)


def test_seeds_that_only_one_of_two_recipes_has_are_left_out():
    first = SeedMean((1.0, 2.0, 4.0), 10, (0, 1, 3))
    second = SeedMean((5.0, 0.5, 0.0), 10, (2, 1, 0))
    assert paired_difference(first, second) == PairedDifference((1.0, 1.5), (0, 1))


def test_one_seed_has_no_interval_and_no_p_value():
    one = PairedDifference((1.0,), (0,))
    assert all(math.isnan(x) for x in (one.interval.low, one.p_value, one.error, one.detectable()))
    assert gate_of(one) is Gate.UNKNOWN


def test_the_gate_opens_for_a_loss_of_five_standard_errors_and_not_for_two_seeds():
    def spread_out(mean: float, num_seeds: int = 4) -> PairedDifference:
        """With a standard error of 1 if there are four seeds."""
        offsets = math.sqrt(3) * np.array([-1, 1, -1, 1])[:num_seeds]
        return PairedDifference(tuple(mean + offsets), tuple(range(num_seeds)))

    assert spread_out(0).error == pytest.approx(1)
    states = {mean: gate_of(spread_out(mean)) for mean in (-5.1, -4.9, 0.0, 5.1)}
    shut = dict.fromkeys((-4.9, 0.0, 5.1), Gate.SHUT)
    assert states == {-5.1: Gate.OPEN} | shut
    assert gate_of(spread_out(-100, num_seeds=2)) is Gate.UNKNOWN


def test_two_equal_recipes_rarely_open_the_gate():
    rng = np.random.default_rng(0)
    states = [gate_of(differences(rng, 0.0, 5)) for _ in range(1000)]
    assert sum(state is Gate.OPEN for state in states) < 12  # 4 are expected


def test_five_percent_of_studies_of_three_equal_mixers_find_one_that_differs():
    rng = np.random.default_rng(2)
    p_values = [[differences(rng, 0.0, 5).p_value for _ in range(3)] for _ in range(1000)]
    assert sum(min(holm(each)) < 0.05 for each in p_values) / 1000 <= 0.07
    assert sum(min(each) < 0.05 for each in p_values) / 1000 > 0.1


def test_holm_keeps_the_order_and_what_is_not_known():
    assert holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, math.nan]) == pytest.approx([1.0, math.nan], nan_ok=True)


# -- the report -----------------------------------------------------------------------------------


def test_an_open_gate_lets_each_difference_speak(tmp_path):
    folder = paired_folder(tmp_path, paired_study(), OPEN)
    gate, ssm, attention, *_ = answer(read(folder))
    assert re.fullmatch(
        r"The gate is open: identity loses to gated_conv by [34]\.\d\d points "
        r"\(\d+\.\d standard errors, n=5\)\.",
        gate,
    )
    assert re.fullmatch(
        r"conv_ssm minus gated_conv: \+[12]\.\d\d points \(\+\d\.\d\d to \+\d\.\d\d\) of top-1 on "
        r"val \(n=5, p below 0\.001 corrected for 2 comparisons\): significant\.",
        ssm,
    )
    assert "not significant. 80 % of such studies find" in attention


def test_a_shut_gate_gives_no_verdict_however_large_a_difference_is(tmp_path):
    folder = paired_folder(tmp_path, paired_study(), SHUT)
    gate, no, *rest = answer(read(folder))
    assert gate.startswith("The gate is shut: identity minus gated_conv is ")
    assert "But conv_ssm is above identity by " in gate
    assert no.startswith("No verdict beside gated_conv can come from this study")
    assert not any("minus gated_conv:" in text for text in rest)
    (section,) = [one for one in _sections(folder) if one.title == "The mixers"]
    verdicts = {row[0]: row[-1] for row in section.tables[0].cells}
    assert verdicts["conv_ssm minus gated_conv"] == "none: gate shut"
    nothing = paired_folder(tmp_path / "none", paired_study(), dict.fromkeys(OPEN, 0.0))
    assert answer(read(nothing))[1] == (
        "No verdict on the mixers can come from this study: beside identity, gated_conv does "
        "nothing here that the study can measure."
    )


def _sections(folder: StudyFolder):
    from mambaout.study.report.sections import sections

    return sections(read(folder))


def test_one_seed_gives_differences_without_intervals_and_no_verdict(tmp_path):
    folder = paired_folder(tmp_path, paired_study(num_seeds=1), OPEN)
    gate, no, *_ = answer(read(folder))
    assert "(n=1), and a standard error needs at least 3 seeds (--seeds)" in gate
    assert no == "So far no verdict on the mixers can come from this study."
    (section,) = [one for one in _sections(folder) if one.title == "The mixers"]
    assert all(" to " not in row[1] for row in section.tables[0].cells)
    write_report(folder)


def test_the_page_the_markdown_and_the_terminal_say_the_same(tmp_path):
    study = paired_study(sides=(28, 56))
    above = {label: OPEN[label.partition("-")[0]] for label in study.recipes}
    folder = paired_folder(tmp_path, study, above | {"conv_ssm-56px": 6.0})
    paths = {path.name for path in write_report(folder)}
    assert {"paired.png", "report.html", "results.md"} <= paths
    page, markdown = ((folder.path / n).read_text() for n in ("report.html", "results.md"))
    shown = " ".join(summary(folder).split())
    for text in answer(read(folder))[:4]:
        assert text in shown
        assert text in markdown
        assert text.replace(" %", "&nbsp;%") in page
    assert "The mixers</h2>" in page
    assert "## The mixers" in markdown


def test_a_network_that_timm_lacks_is_evaluated_and_not_exported_next(tmp_path):
    study = paired_study(names=("identity", "gated_conv"))
    patchify = {name: tuned(each, downsampling="patchify") for name, each in study.recipes.items()}
    study = replace(study, recipes=patchify)
    folder = paired_folder(tmp_path, study, dict.fromkeys(patchify, 0.0))
    for trial in folder.trials():
        (folder.run_directory(trial) / "last.ckpt").touch()
    text = summary(folder)
    assert "mambaout evaluate mixer/" in text
    assert "mambaout export" not in text


def test_the_change_from_the_shortest_to_the_longest_sequence_is_taken_within_a_seed(tmp_path):
    study = paired_study(sides=(28, 56, 112))
    above = {label: OPEN[label.partition("-")[0]] for label in study.recipes}
    folder = paired_folder(tmp_path, study, above | {"conv_ssm-112px": 6.0})
    paired = read(folder).paired
    assert paired is not None
    ssm, attention = paired.changes
    assert ssm.place == "28 px to 112 px, 196 to 3,136 tokens"
    assert ssm.difference.value == pytest.approx(4, abs=0.8)
    assert ssm.is_significant
    assert not attention.is_significant
    short, _, long = (one.difference for one in paired.pairs if one.pair.first == "conv_ssm")
    assert ssm.difference.values == pytest.approx(np.subtract(long.values, short.values))
    said = " ".join(answer(read(folder)))
    assert "From 28 px to 112 px, 196 to 3,136 tokens, conv_ssm minus gated_conv changes" in said


def test_no_verdict_on_a_change_if_the_gate_is_shut_at_one_end(tmp_path):
    study = paired_study(sides=(28, 56))
    above = {label: OPEN[label.partition("-")[0]] for label in study.recipes}
    folder = paired_folder(tmp_path, study, above | {"identity-28px": 0.0})
    paired = read(folder).paired
    assert paired is not None
    assert [one.gate for one in paired.changes] == [Gate.SHUT, Gate.SHUT]
    assert {one.place: one.gate for one in paired.pairs} == {
        "28 px, 196 tokens": Gate.SHUT,
        "56 px, 784 tokens": Gate.OPEN,
    }


def test_what_is_compared_is_read_back_from_the_folder(tmp_path):
    study = paired_study(sides=(28, 56))
    folder = StudyFolder(tmp_path, study.name)
    folder.write(study, study.trials("0123456789ab"))
    assert pairing_from_json(folder.read()["pairing"]) == study.pairing
    assert answer(read(folder)) == ["No trial has finished yet, so there is no answer yet."]
    plain = StudyFolder(tmp_path, "plain")
    plain.write(Study(name="plain", question="?", recipes={}), [])
    assert pairing_from_json(plain.read()["pairing"]) is None
    assert read(plain).paired is None


# -- before the study -----------------------------------------------------------------------------


def lines_of(num_seeds: int, points: float | None = None) -> str:
    study = paired_study(num_seeds=num_seeds)
    assert study.pairing is not None
    seeds = dict.fromkeys(study.recipes, range(num_seeds))
    return " ".join(" ".join(paired_lines(study.pairing, seeds, ASSUMED, points)).split())


def test_the_plan_says_what_the_study_will_see_and_what_opens_its_gate():
    text = lines_of(20)
    assert text.startswith(
        "power of the mixers, compared within a seed; seeds differ by 0.80 points"
    )
    found = paired_detectable(SD, 20, 2)
    assert f"20 seeds each: 80 % of such studies find a difference of {found:.2f} points" in text
    assert f"0.5 points would need {paired_seeds(SD, 0.5, 2)} seeds each" in text
    assert "identity must lose to gated_conv by 5 standard errors, about 1.26 points" in text
    assert "one seed each: no difference can be told from luck" in lines_of(1)
    assert "it is not known with fewer than 3 seeds" in lines_of(2)


def test_the_seeds_that_a_wanted_difference_needs_are_chosen_or_refused():
    pairing = paired_study().pairing
    assert pairing is not None
    chosen = seeds_to_detect_pairs(pairing, ASSUMED, 1.0)
    assert set(chosen) == set(paired_study().recipes)
    assert set(chosen.values()) == {paired_seeds(SD, 1.0, 2)}
    assert "would need" not in lines_of(next(iter(chosen.values())), points=1.0)
    with pytest.raises(
        WrongRequest, match=r"--detect 0\.01: even 100 seeds are too few"
    ) as refused:
        seeds_to_detect_pairs(pairing, ASSUMED, 0.01)
    asked = re.search(r"ask for ([0-9.]+) points or more", str(refused.value))
    assert asked is not None
    assert seeds_to_detect_pairs(pairing, ASSUMED, float(asked[1]))
