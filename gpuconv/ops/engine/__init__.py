"""What families of ops share: chunks of work for CPU threads, sums, maxima, and GPU partitions."""
