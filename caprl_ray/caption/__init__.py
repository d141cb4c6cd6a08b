"""The job `caption`: its stage, its columns, and the search for rows that kill a replica."""
