"""What others call by the same name: each preset is a loss of ours with constants it takes; differences are seen."""

from __future__ import annotations

import pytest

from trainer.__main__ import main
from trainer.loss_specs import filled
from trainer.presets import OBJECTIVES, differences, find_objective, peers


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_names_a_loss_with_constants_it_takes(name: str) -> None:
    objective = OBJECTIVES[name]
    expanded = objective.expanded()
    assert {key: expanded[key] for key in objective.constants} == dict(objective.constants)
    assert set(filled(objective.loss, objective.constants)) < set(expanded)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if "@" in name])
def test_a_peers_objective_says_where_it_was_read_and_has_ours_beside_it(name: str) -> None:
    assert OBJECTIVES[name].read_in.endswith(".py")
    assert name.partition("@")[0] in OBJECTIVES
    assert OBJECTIVES[name.partition("@")[0]].read_in == ""


def test_an_objective_that_is_not_exact_says_in_words_what_it_is() -> None:
    assert [
        name for name, one in OBJECTIVES.items() if not one.exact and not (one.also or one.correction != "none")
    ] == []


def test_grpo_here_and_in_verl() -> None:
    """verl: token mean instead of each completion's, dual clip 3, epsilon 1e-6; the same clip bounds."""
    found = differences(OBJECTIVES["grpo"].expanded(), OBJECTIVES["grpo@verl"].expanded())
    assert found["dual_clip"] == (0.0, 3.0)
    assert found["loss"] == ("grpo", "dapo")
    assert "clip_high_threshold" not in found and "kl_k3" not in found


def test_a_constant_that_is_off_is_no_difference_from_one_that_is_not_there() -> None:
    assert differences({"kl_k3": 0.0, "beta": 0.1}, {"beta": 0.2, "clip": 0.0}) == {"beta": (0.1, 0.2)}
    assert differences({"beta": 0.1}, {"clip": 1.2}) == {"beta": (0.1, None), "clip": (None, 1.2)}


def test_orpo_has_ten_times_trls_weight() -> None:
    assert set(peers("orpo")) == {"trl", "fireworks"}
    found = differences(OBJECTIVES["orpo"].expanded(), OBJECTIVES["orpo@trl"].expanded())
    assert found == {"orpo_lambda": (1.0, 0.1)}


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"'grpo@nobody' is not known; choose from grpo, grpo@trl"):
        find_objective("grpo@nobody")
    with pytest.raises(ValueError, match=r"choose from sft, dpo, orpo, grpo"):
        find_objective("nothing")


def test_explain_prints_the_method_and_how_others_differ(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "grpo@tinker"]) == 0
    out = capsys.readouterr().out
    assert "importance_sampling" in out and "not as grpo" in out and "clip_low_threshold" in out
    assert main(["explain", "grpo@me"]) == 2
    assert "choose from grpo" in capsys.readouterr().err
    assert main(["explain", "grpo", "job.epochs=2"]) == 2
