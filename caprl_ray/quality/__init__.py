"""Checks on captions: pure functions of the text and of what is known about it. No module here imports Ray or vLLM.

`checks.Checks` is what the other rooms use. `registry.CHECKS` lists every check.
"""
