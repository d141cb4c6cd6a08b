"""Engines turn one image and one prompt into a caption. The rest of the job cannot tell them apart."""
