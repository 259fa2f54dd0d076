"""Fine-tuning and RL training whose jobs are the jobs of a gateway API."""

__version__ = "0.1.0"
