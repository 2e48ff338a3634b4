"""Which runs, what they cost, what they say; home of mlflow and plotting, free of torch."""
