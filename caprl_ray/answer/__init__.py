"""The job `score`: captions go in, a reader answers questions from them, and scores come out."""
