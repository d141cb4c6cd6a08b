"""Checks on captions: pure functions of the text and its context. No module here imports Ray or vLLM.

The other rooms use `checks.Checks`. `registry.CHECKS` lists every check.
"""
