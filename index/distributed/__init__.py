"""Work of an index on a cluster of Ray, which schedules, retries and knows which machines there are."""
