"""One training run on one worker group; knows nothing of Ray, MLflow or Optuna."""
