"""Supervised fine-tuning: the likelihood of what the assistant wrote, over the trained tokens of each step.

All but the loss is `trainer/loops/training.py`.
"""

from __future__ import annotations

from trainer.data.batches import Step
from trainer.loops import evaluation
from trainer.loops.best import LOSS
from trainer.loops.training import MODEL, Gathered, TrainingLoop, datums_of


class SftLoop(TrainingLoop):
    """One supervised run. Its examples are datums."""

    def gather(self, batches: Step) -> Gathered:
        """Cross-entropy, summed over the step's batches; divided by the sum of their weights."""
        loss = trained = 0.0
        for batch in batches:
            data = datums_of(self.train[row] for row in batch)
            loss += self.checked(data).metrics["loss:sum"]
            trained += sum(float(datum.weights.sum()) for datum in data)
        return Gathered(trained, {"loss": loss / trained}, int(trained))

    def figures(self) -> dict[str, float] | None:
        """The held-out loss, per trained token."""
        held_out = datums_of(self.held_out)
        loss = evaluation.held_out_loss(self.engine, MODEL, held_out, keep_going=self.keep_going)
        return None if loss is None else {LOSS: loss}
