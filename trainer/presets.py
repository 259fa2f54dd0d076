"""What a method's name means: here, and to those who use the same name for something else.

`OBJECTIVES["grpo"]` is ours, `OBJECTIVES["grpo@trl"]` is what TRL trains by default under that name, in the same words:
the two can be compared line by line (`differences`), and a job can ask for a peer's definition (`settings_for`).
Where a peer does something that no constant of ours expresses, `also` says it, and `exact` is False.

Read in the source of: TRL 1.16.0; verl at 1dda039b (2026-08); tinker-cookbook at 9dfcc3a2 (2026-08); the Fireworks
cookbook (fw-ai/cookbook) at 76821fa1 (2026-08). p log-prob now, q of the sampler, o of the trainer before the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.loss_specs import described, filled

_GROUP_STD = "(R - group mean) / (sample std of the group + 1e-4)"
_CENTRED = "R - group mean, not divided by the std"
_TOKENS = "trained tokens of the optimizer step"
_PAIRS = "pairs of the optimizer step"
_SEQUENCES = "completions of the optimizer step"
_NONE = "none"
_OLD = "o, recomputed by the trainer before the step"
_SAMPLER = "q, as the sampler reported it"
_TIS = "each token x min(exp(o - q), 5)"


@dataclass(frozen=True)
class Objective:
    """A method, expanded. `loss` and `constants` name one of our losses (`trainer.loss_specs`).

    divided_by: what divides the step's sum. advantage: from scores to A. ratio_to: the policy under the ratio.
    correction: for the sampler's log-probs being others than the trainer's. also: whatever else is different, in words.
    """

    loss: str
    divided_by: str
    constants: Mapping[str, float] = field(default_factory=dict)
    advantage: str = _NONE
    ratio_to: str = _NONE
    correction: str = _NONE
    also: tuple[str, ...] = ()
    read_in: str = ""
    exact: bool = True

    def expanded(self) -> dict[str, Any]:
        """Every line of the objective, constants filled in; comparable with another's."""
        spec = described(self.loss, self.constants)
        lines = {
            "loss": self.loss,
            "equation": spec["equation"],
            "sum over": spec["sum_over"],
            "divided by": self.divided_by,
            "ratio": spec["ratio_level"],
            "ratio to": self.ratio_to,
            "advantage": self.advantage,
            "correction": self.correction,
        }
        return lines | spec["constants"]


def _rl(loss: str, divided_by: str, *, constants: Mapping[str, float] | None = None, **rest: Any) -> Objective:
    """A policy-gradient method: group advantages, and the ratio to the trainer's own old log-probs, unless said."""
    rest = {"advantage": _GROUP_STD, "ratio_to": _OLD, **rest}
    return Objective(loss, divided_by, constants or {}, **rest)


_TRL_GRPO = ("with one pass over each batch (its default) o = p, so that the ratio is 1 and no clip can act",)
_TRL_VLLM = "sequence mask: whole completions x exp(sum (o - q)), 0 above 3; with vLLM only"
_VERL_STD = "(R - group mean) / (sample std of the group + 1e-6)"
_VERL_ALSO = ("log-ratios cut off at +-20", "the default estimator is gae: grpo must be asked for")
_FW_STD = "(R - group mean) / (std of the group + 1e-8), groups that agree left out"
_FW_SUM = "nothing, unless optim_step is told num_loss_tokens or num_sequences"
_TINKER = ("Adam with eps 1e-8, and no weight decay",)

OBJECTIVES: dict[str, Objective] = {
    "sft": Objective("cross_entropy", _TOKENS),
    "sft@trl": Objective(
        "cross_entropy", _TOKENS, read_in="trl/trainer/sft_trainer.py", exact=False,
        also=("trains every token of a chat unless assistant_only_loss or prompt/completion rows say otherwise",
              "cuts rows at 1,024 tokens without a word")),
    "sft@fireworks": Objective(
        "cross_entropy", "rows of the step, each the mean over its trained tokens", exact=False,
        read_in="training/recipes/sft_loop.py", also=("the mean of each row's mean: long rows count less a token",)),
    "dpo": Objective("dpo", _PAIRS, {"beta": 0.1}),
    "dpo@trl": Objective("dpo", _PAIRS, {"beta": 0.1}, read_in="trl/trainer/dpo_trainer.py",
                         also=("rows whose prompt fills max_length are dropped uncounted",)),
    "dpo@tinker": Objective("dpo", _PAIRS, {"beta": 0.1}, read_in="tinker_cookbook/preference/train_dpo.py",
                            also=("learning rate 1e-5, linear decay",)),
    "dpo@fireworks": Objective("dpo", _PAIRS, {"beta": 0.1}, read_in="training/utils/losses.py",
                               also=("beta in (0, 0.5)",)),
    "orpo": Objective("orpo", _PAIRS, {"orpo_lambda": 1.0}),
    "orpo@trl": Objective(
        "orpo", _PAIRS, {"orpo_lambda": 0.1}, read_in="trl/experimental/orpo/orpo_trainer.py", exact=False,
        also=("the NLL term runs over prompt and response tokens of the micro-batch, not over the response alone",
              "calls the weight beta")),
    "orpo@fireworks": Objective(
        "orpo", "nothing: pairs are summed", {"orpo_lambda": 1.0}, read_in="training/utils/losses.py",
        also=("mean log-probs cut off at -50",)),
    "grpo": _rl("grpo", _SEQUENCES),
    "grpo@trl": _rl("dapo", "tokens of the generation batch", constants={"clip_high_threshold": 1.2},
                    correction=_TRL_VLLM, also=_TRL_GRPO, read_in="trl/trainer/grpo_trainer.py", exact=False),
    "grpo@verl": _rl("dapo", _TOKENS, constants={"clip_high_threshold": 1.2, "dual_clip": 3.0},
                     advantage=_VERL_STD, also=_VERL_ALSO, read_in="verl/trainer/ppo/core_algos.py"),
    "grpo@fireworks": _rl("dapo", _FW_SUM, constants={"clip_high_threshold": 1.2, "kl_k3": 0.001}, advantage=_FW_STD,
                          correction=_TIS, read_in="training/utils/rl/grpo.py", exact=False,
                          also=("the KL term is not corrected",)),
    "grpo@tinker": _rl("importance_sampling", "nothing: a sum over tokens", advantage=_CENTRED, ratio_to=_SAMPLER,
                       also=("no clip and no KL", *_TINKER), read_in="tinker_cookbook/rl/train.py"),
    "dapo": _rl("dapo", _TOKENS),
    "dapo@trl": _rl("dapo", "tokens of the generation batch", correction=_TRL_VLLM, exact=False,
                    also=(*_TRL_GRPO, "no dynamic sampling", "epsilon_high=0.28 and mask_truncated_completions are "
                          "yours to set"), read_in="trl/trainer/grpo_trainer.py"),
    "dapo@verl": _rl("dapo", _TOKENS, constants={"dual_clip": 3.0}, advantage=_VERL_STD,
                     also=(*_VERL_ALSO[:1], "clip_ratio_high=0.28 is yours to set: its default is 0.2"),
                     read_in="verl/trainer/ppo/core_algos.py"),
    "dapo@fireworks": _rl("dapo", _FW_SUM, advantage=_FW_STD, correction=_TIS, exact=False,
                          also=("log-ratios cut off at +-20",), read_in="training/utils/rl/dapo.py"),
    "gspo_token": _rl("gspo_token", _SEQUENCES),
    "gspo_token@trl": _rl("gspo", _SEQUENCES, constants={"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
                          correction=_TRL_VLLM, exact=False, read_in="trl/trainer/grpo_trainer.py",
                          also=("importance_sampling_level=sequence, loss_type=grpo must be set; no token form",
                                "its clip is 600 times as wide as the paper's")),
    "gspo_token@verl": _rl("gspo_token", _SEQUENCES,
                           constants={"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
                           advantage=_VERL_STD, also=("log-ratios cut off at 10 from above",),
                           read_in="verl/trainer/ppo/core_algos.py"),
    "gspo_token@fireworks": _rl("gspo_token", _FW_SUM,
                                constants={"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}, advantage=_FW_STD,
                                correction=_TIS, exact=False, read_in="training/utils/rl/gspo.py",
                                also=("a sum over tokens instead of each completion's mean",
                                      "the mean log-ratio also counts masked (tool) tokens")),
    "cispo": _rl("cispo", _TOKENS),
    "cispo@trl": _rl("cispo", "tokens of the generation batch",
                     constants={"clip_low_threshold": 0.0, "clip_high_threshold": 5.0}, correction=_TRL_VLLM,
                     exact=False, also=("epsilon_high is the absolute cap: 5 is recommended; its default makes every "
                                        "weight 0.2",), read_in="trl/trainer/grpo_trainer.py"),
    "cispo@verl": _rl("cispo", _TOKENS, constants={"clip_high_threshold": 1.2}, advantage=_VERL_STD,
                      also=_VERL_ALSO[:1], read_in="verl/trainer/ppo/core_algos.py"),
    "cispo@fireworks": _rl("cispo", _FW_SUM, advantage=_FW_STD, correction=_TIS, exact=False,
                           also=("log-ratios cut off at +-20",), read_in="training/utils/rl/cispo.py"),
}  # fmt: skip


def find_objective(name: str) -> Objective:
    """The objective called `name`, `method` or `method@peer`. Raises `ValueError` naming those there are."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    method = name.partition("@")[0]
    same = [known for known in OBJECTIVES if known.partition("@")[0] == method]
    near = same or [known for known in OBJECTIVES if "@" not in known]
    raise ValueError(f"objective: {name!r} is not known; choose from {', '.join(near)}")


def peers(method: str) -> dict[str, Objective]:
    """What others call `method`, by their name."""
    return {name.split("@")[1]: one for name, one in OBJECTIVES.items() if name.startswith(method + "@")}


_OF_DPO = {
    "beta": "job.loss_config.dpo.beta",
    "nll_weight": "train.dpo.nll_weight",
    "label_smoothing": "train.dpo.label_smoothing",
}
SETTINGS: dict[str, dict[str, str]] = {  # by which of a job's settings each constant of its method's loss is set
    "sft": {},
    "dpo": _OF_DPO,
    "orpo": {"orpo_lambda": "job.loss_config.orpo.lambda"},
}
_BEYOND_CONSTANTS = ("divided by", "ratio to", "advantage", "correction")


def settings_for(name: str, method: str) -> dict[str, Any]:
    """The settings, by dotted key, with which a job of `method` (a key of `SETTINGS`) trains the objective `name`.

    Raises `ValueError` for a name that is not known, is of another method, or says what no setting expresses.
    """
    asked = find_objective(name)
    theirs = name.partition("@")[0]
    if theirs != method:
        learns = "" if theirs in SETTINGS else ", which learns from rewards"
        raise ValueError(
            f"objective: {name} is of method {theirs}{learns}, and this job's method is {method}; choose from "
            f"{', '.join(_settable(method))}, or another job (python -m trainer explain {name} says what it is)"
        )
    wanted = _wanted(asked, method)
    if beyond := _beyond_settings(asked, method):
        usual = filled(OBJECTIVES[method].loss, OBJECTIVES[method].constants)
        words = " ".join(f"{key}={value:g}" for constant, key in SETTINGS[method].items()
                         if (value := wanted[key]) != usual[constant])  # fmt: skip
        raise ValueError(
            f"objective: {name} cannot be had whole here: {'; '.join(beyond)}. Leave objective unset"
            f"{f' and type {words} for the rest of it' if words else ''}, or choose from {', '.join(_settable(method))}"
        )
    return wanted


def _wanted(asked: Objective, method: str) -> dict[str, Any]:
    values = filled(asked.loss, asked.constants)
    wanted: dict[str, Any] = {key: values[constant] for constant, key in SETTINGS[method].items()}
    return {"train.dpo.loss": asked.loss, **wanted} if method == "dpo" else wanted


def _settable(method: str) -> list[str]:
    same = [name for name in OBJECTIVES if name.partition("@")[0] == method]
    return [name for name in same if not _beyond_settings(OBJECTIVES[name], method)]


def _beyond_settings(asked: Objective, method: str) -> list[str]:
    """What of an objective no setting of a job of its method expresses, in words; of an exact one nothing."""
    ours, theirs = OBJECTIVES[method].expanded(), asked.expanded()
    found = [f"{key} {theirs[key]}, here {ours[key]}" for key in _BEYOND_CONSTANTS if theirs[key] != ours[key]]
    return [*found, *asked.also] if found or not asked.exact else []


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The lines of two expanded objectives that are not the same: (mine, theirs), None where there is no such line.

    A constant that is 0 on one side and absent on the other is no difference: both mean off.
    """
    found = {}
    for key in [*mine, *(key for key in theirs if key not in mine)]:
        left, right = mine.get(key), theirs.get(key)
        if left != right and (left or right):
            found[key] = (left, right)
    return found
