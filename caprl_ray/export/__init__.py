"""The ways out: an output in the forms that people read, streamed, each row once."""
