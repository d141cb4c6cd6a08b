"""Score captions by the questions that a reader can answer from them without the image (CapRL, arXiv 2509.22647).

Questions, prompts, metrics, rewards and sums. Nothing here needs Ray, an engine or a GPU.
"""
