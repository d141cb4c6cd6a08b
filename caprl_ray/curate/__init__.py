"""The job `curate`: images -> questions -> answers with and without the image -> the questions that need the image."""
