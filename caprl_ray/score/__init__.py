"""What a reader who never saw the image can answer from its caption (CapRL, arXiv 2509.22647).

Questions, prompts, metrics, rewards and sums. Nothing here needs Ray, an engine or a GPU.
"""
