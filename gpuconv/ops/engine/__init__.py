"""Parts that families of ops share: chunks of CPU work, sums, maxima, and GPU partitions."""
