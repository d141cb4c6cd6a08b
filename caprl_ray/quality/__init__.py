"""Checks on captions: pure functions of the text and its context. No module here imports Ray or vLLM.

Other rooms use `checks.Checks`. `registry.CHECKS` lists every check.
"""
