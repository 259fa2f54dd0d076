def evaluate(messages, ground_truth=None, tools=None, **kwargs):
    """1 where the truth occurs in the answer; a metric of its own for short answers."""
    text = messages[-1]["content"]
    short = {"score": 1.0 if len(text) < 80 else 0.0, "is_score_valid": True, "reason": f"{len(text)} characters"}
    return {"score": float(str(ground_truth) in text), "reason": "substring match", "metrics": {"short": short}}
