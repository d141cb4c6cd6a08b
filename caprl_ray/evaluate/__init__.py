"""The command `evaluate`: score outputs by the questions that a reader can answer from their captions."""
