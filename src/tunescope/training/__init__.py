"""Training: one fit loop; pretraining with instruction tuning; fine-tuning by any protocol."""
