"""HTML pages: one about an output with images beside captions, and one that compares two outputs.

A page is one file. It needs no network, opens from disk, and shows captions as text only.
"""
