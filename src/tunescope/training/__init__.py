"""Training: one fit loop, and pretraining with instruction tuning."""
