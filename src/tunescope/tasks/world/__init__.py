"""The synthetic world: every prompt's operators, operand, answer and safety are known exactly."""
