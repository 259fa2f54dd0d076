"""Preference optimisation, DPO and ORPO: pairs of answers to one prompt, of which one is to become more likely.

Before the first step the reference's log-probs of all pairs are computed, where the loss has a reference, and kept on
disk (`reference.py`); then each step adds the gradients of its pairs and divides once by their number. The loss and
its constants are those of the expanded objective in `run.json`. All else is `trainer/loops/training.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.data.batches import Step
from trainer.data.datum import Example, Pair
from trainer.jobs import DEFAULT_REFERENCE_PAIRS, DpoConfig, DpoJob, LossConfig
from trainer.loops.best import LOSS, PREFERRED, Logged
from trainer.loops.pair_figures import PairFigures
from trainer.loops.reference import FOLDER, ReferenceCache
from trainer.loops.training import MODEL, Gathered, TrainingLoop, datums_of
from trainer.loops.watchdog import REFERENCE
from trainer.loss_specs import LOSS_SPECS

_REFERENCE = "reference"  # the base with no adapter on
_HELD_OUT_PAIRS = 128  # of one piece of an evaluation
_STEPS = {
    "loss": "", "accuracy": "max", "preference": "max", "margin": "max", "log_odds": "max", "kl_k3": "min",
    "grad_norm": "", "learning_rate": "",
}  # fmt: skip


def logged_by(loss: str) -> Logged:
    """What a run of this loss logs that early stopping can go by."""
    absent = {"log_odds"} if LOSS_SPECS[loss].needs else {"margin", "kl_k3"}
    steps = {name: way for name, way in _STEPS.items() if name not in absent}
    evaluated = {f"eval/{name}": way for name, way in steps.items() if name not in ("grad_norm", "learning_rate")}
    return Logged({LOSS: "", **evaluated}, steps, frozenset({"eval/accuracy", PREFERRED}))


class PreferenceLoop(TrainingLoop):
    """One preference run. Its examples are pairs; `made_with` says what their reference depends on."""

    def __init__(self, spec: Any, material: Any, *, made_with: Mapping[str, str], **more: Any) -> None:
        self.loss: str = spec.objective["name"]
        self.constants: dict[str, float] = dict(spec.objective["constants"])
        self.logged = logged_by(self.loss)
        self.made_with = made_with
        super().__init__(spec, material, **more)

    def prepare(self) -> bool:
        """Every pair with its reference log-probs; False = broken off by a request to stop."""
        if "reference" not in LOSS_SPECS[self.loss].needs:
            return True
        cache = ReferenceCache(self.folder / FOLDER, self.made_with, damaged=self.reporter.log)
        known, model = len(cache), ""
        sets = {"train": self.material.train, "held_out": self.material.held_out}
        for name, examples in sets.items():
            for number, piece in cache.missing(datums_of(examples), self.reference_datums):
                if not self.keep_going():
                    return False
                with self.stage(REFERENCE):
                    model = model or self.reference_model()
                    cache.add(f"{name}-{number:06d}", piece, self.engine.forward(model, piece).logprobs)
        self.reporter.log(f"reference log-probs: {len(cache) - known} answers computed, {known} known ({cache.folder})")
        self.train = [_with_reference(one, cache) for one in self.material.train]
        self.held_out = [_with_reference(one, cache) for one in self.material.held_out]
        return True

    @property
    def reference_datums(self) -> int:
        """Datums the engine is given at once: pairs of one pass, times the passes that may be under way."""
        job = self.spec.job
        given = (job.loss_config if isinstance(job, DpoJob) else None) or LossConfig()
        dpo = given.dpo or DpoConfig()
        return 2 * (dpo.ref_cache_batch_size or DEFAULT_REFERENCE_PAIRS) * (dpo.ref_cache_concurrency or 1)

    def reference_model(self) -> str:
        """The policy as training starts: with a new adapter that is the base, else the untrained model itself."""
        if not self.spec.hyper.lora_rank:
            return MODEL
        self.engine.create_model(_REFERENCE, lora=None, base_only=True)
        return _REFERENCE

    def gather(self, batches: Step) -> Gathered:
        """The loss of the step's pairs, summed over its batches; divided by their number."""
        figures = PairFigures()
        for batch in batches:
            data = datums_of(self.train[row] for row in batch)
            figures.add(data, self.checked(data, loss=self.loss, loss_config=self.constants))
        return Gathered(figures.pairs, figures.values(), figures.trained)

    def figures(self) -> dict[str, float] | None:
        """The same figures of the held-out pairs."""
        figures = PairFigures()
        for start in range(0, len(self.held_out), _HELD_OUT_PAIRS):
            if not self.keep_going():
                return None
            data = datums_of(self.held_out[start : start + _HELD_OUT_PAIRS])
            figures.add(data, self.engine.forward(MODEL, data, loss=self.loss, loss_config=self.constants))
        return figures.values("eval/")


def _with_reference(example: Example, cache: ReferenceCache) -> Pair:
    assert isinstance(example, Pair)
    return Pair(cache.filled(example.chosen), cache.filled(example.rejected))
