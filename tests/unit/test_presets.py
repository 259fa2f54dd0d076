"""What others call by the same name: each preset is a loss of ours with constants it takes; differences are seen, and
a job can ask for one that its settings express."""

from __future__ import annotations

import pytest

from trainer.__main__ import main
from trainer.compose import ConfigError, compose, sweep
from trainer.loss_specs import filled
from trainer.presets import OBJECTIVES, SETTINGS, differences, find_objective, peers, settings_for
from trainer.runs import Inputs, RowSource, RunSpec


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


def told(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What `explain` prints of a job itself, and of how others differ."""
    assert main(["explain", *words.split()]) == 0
    own, _, others = capsys.readouterr().out.partition("\n\n")
    return own, others


def test_explain_of_a_dpo_job_has_its_constants_and_how_three_others_differ(capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped experiment: beta 0.3 and the likelihood term, where all three have 0.1 and none."""
    own, others = told("job=dpo", capsys)
    assert "method dpo" in own and "2305.18290, Eq. 7" in own
    assert "beta                0.3" in own and "nll_weight          1" in own
    assert [line for line in others.splitlines() if "as dpo@" in line] == [
        "not as dpo@trl", "not as dpo@tinker", "not as dpo@fireworks"
    ]  # fmt: skip
    assert others.count("there: 0.1") == 3 and others.count("there: 0\n") == 3
    assert "equation" not in others  # the same loss, in whatever words


def test_explain_of_an_orpo_job_compares_the_weight_and_the_divisor(capsys: pytest.CaptureFixture[str]) -> None:
    own, others = told("job=orpo", capsys)
    assert "method orpo" in own and "orpo_lambda         1" in own and "reference             none" in own
    trl, fireworks = others.split("\n\n")
    assert trl.startswith("not as orpo@trl\n  orpo_lambda           1\n") and "there: 0.1" in trl
    assert "orpo_lambda" not in fireworks and "there: nothing: pairs are summed" in fireworks


def test_explain_of_a_supervised_job(capsys: pytest.CaptureFixture[str]) -> None:
    own, others = told("job=sft data=quickstart", capsys)
    assert "method sft" in own and "cross_entropy" in own
    trl, fireworks = others.split("\n\n")
    assert "divided by" not in trl and "1,024 tokens" in trl
    assert "divided by            trained tokens of the optimizer step" in fireworks


def test_explain_of_another_loss_of_the_margin_shows_its_equation(capsys: pytest.CaptureFixture[str]) -> None:
    _, others = told("job=dpo train.dpo.loss=dpo_ipo", capsys)
    assert "  loss                  dpo_ipo\n" in others and "(M - 1 / (2 beta))^2" in others


def test_a_job_with_a_preset_is_that_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    own, others = told("job=dpo objective=dpo@trl", capsys)
    assert "preset                dpo@trl" in own and "beta                0.1" in own
    assert others.count("the same constants and divisor as dpo@") == 3
    assert "beta is 0.1, as objective=dpo@trl has it, and not 0.3 as in configs/experiment/dpo.yaml" in own


@pytest.mark.parametrize("name", ["dpo", "dpo@trl", "dpo@tinker", "dpo@fireworks"])
def test_dpo_presets_set_every_constant_over_the_experiments(name: str, tmp_path) -> None:
    composed = compose(["job=dpo", f"objective={name}"])
    assert composed.job.wire()["lossConfig"]["dpo"] == {"beta": 0.1}
    assert composed.train.dpo.model_dump() == {"loss": "dpo", "label_smoothing": 0.0, "nll_weight": 0.0}
    inputs = Inputs(base_model="b", train=RowSource(name="n", path="p"))
    composed.spec("run", inputs, created="now").save(tmp_path)
    spec = RunSpec.load(tmp_path)
    assert spec.objective["preset"] == name and spec.objective["constants"]["beta"] == 0.1
    assert spec.job.wire()["lossConfig"]["dpo"] == {"beta": 0.1}
    for key in ("job.loss_config.dpo.beta", "objective.constants.beta", "train.dpo.nll_weight",
                "objective.constants.nll_weight"):  # fmt: skip
        assert spec.sources[key] == f"objective={name}", key
    assert spec.sources["objective.preset"] == "typed" and "objective" not in spec.sources


def test_orpo_by_name_has_the_gateways_weight() -> None:
    composed = compose(["job=orpo", "objective=orpo"])
    assert composed.job.wire()["lossConfig"]["orpo"] == {"lambda": 1.0}
    assert composed.sources["job.loss_config.orpo.lambda_"] == "objective=orpo"


def test_a_group_that_was_left_out_is_made() -> None:
    """The job without a loss is a DPO job."""
    assert compose(["job=dpo", "objective=dpo@trl", "job.loss_config=null"]).objective["constants"]["beta"] == 0.1


def test_presets_can_be_swept() -> None:
    assert list(sweep(["job=dpo", "objective=dpo,dpo@trl"])) == [
        ["job=dpo", "objective=dpo"], ["job=dpo", "objective=dpo@trl"]
    ]  # fmt: skip


def test_a_run_without_a_preset_has_none() -> None:
    assert "preset" not in compose(["job=dpo"]).objective and compose(["job=dpo"]).preset is None


def test_the_same_value_may_be_typed_too() -> None:
    words = ["job=dpo", "objective=dpo@trl", "job.loss_config.dpo.beta=0.1", "train.dpo.label_smoothing=null"]
    assert compose(words).objective["constants"]["beta"] == 0.1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("job=orpo objective=orpo@trl", "the NLL term runs over prompt and response tokens"),
        ("job=orpo objective=orpo@trl", "type job.loss_config.orpo.lambda=0.1 for the rest of it, or choose from orpo"),
        ("job=orpo objective=orpo@fireworks", "divided by nothing: pairs are summed, here pairs of the optimizer"),
        ("data=quickstart objective=sft@trl", "cuts rows at 1,024 tokens without a word"),
        ("job=dpo objective=orpo", "orpo is of method orpo, and this job's method is dpo; choose from dpo, dpo@trl"),
        ("job=orpo objective=dpo@trl", "dpo@trl is of method dpo, and this job's method is orpo; choose from orpo,"),
        ("data=quickstart objective=dpo", "this job's method is sft; choose from sft,"),
        ("job=dpo objective=grpo@trl", "grpo, which learns from rewards, and this job's method is dpo; choose"),
        ("job=dpo objective=dpo@nobody", "'dpo@nobody' is not known; choose from dpo, dpo@trl"),
        ("job=dpo objective=dpo@trl job.loss_config.dpo.beta=0.3", "beta: 0.3 was typed, and objective=dpo@trl is 0.1"),
        ("job=dpo objective=dpo@trl train.dpo.loss=dpo_ipo", "train.dpo.loss: dpo_ipo was typed, and objective="),
        ("job=dpo objective=dpo job.loss_config={dpo:{beta:2}}", "beta: 2 was typed"),
        ("job=dpo objective=dpo job.loss_config=no", "job.loss_config: Input should be"),
        ("job=dpo objective=dpo train.dpo=7", "train.dpo: Input should be"),
        ("job=dpo objective=dpo job.loss_config.method=GRPO", "GRPO learns from rewards, and this job from pairs"),
    ],
)  # fmt: skip
def test_what_a_preset_cannot_do_is_refused_with_the_way_out(words: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(words.split())
    assert says in str(caught.value)


@pytest.mark.parametrize("method", SETTINGS)
def test_every_constant_of_a_methods_loss_has_a_setting(method: str) -> None:
    assert set(SETTINGS[method]) == set(filled(OBJECTIVES[method].loss, {}))
    assert set(settings_for(method, method)) >= set(SETTINGS[method].values())
