"""One file per loss and one table; constants, equations and denominators are in `trainer.loss_specs`, without torch.

A loss is a sum; the optimizer step divides once by a denominator counted over the whole step. Each usual mean is then
exact, whatever the split into calls, micro-batches and ranks:

- mean over all tokens of the step (SFT, DAPO): coefficient 1 per token, denominator `tokens`;
- mean over sequences of each one's token mean (GRPO, GSPO): coefficient 1/n_i, denominator `sequences`;
- Dr. GRPO's constant length L: coefficient 1, denominator `sequence_tokens` = sequences x L;
- sum within a sequence, mean over sequences (REINFORCE, RLOO): coefficient 1, denominator `sequences`;
- mean over pairs (DPO, ORPO): denominator `pairs`; a mean over prompt groups of each one's token mean (DAPO's paper):
  weights 1/(tokens of the group), denominator = groups.

A datum's weights are such coefficients: they multiply every term, so what a loss does not know (that a rollout was cut
into several datums, say) is said there: give each position 1/n of the rollout and use a loss of coefficient 1. A
correction for the sampler (truncated importance sampling: a factor >= 0 that is a constant to the gradient) multiplies
the advantages: every policy loss but `dro`'s penalty is homogeneous in them, so that equals multiplying its term.
"""
