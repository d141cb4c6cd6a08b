"""The job `caption`: its stage, how it searches for rows that end a replica, and the columns that it adds."""
