"""The tuned lens: training, files, evaluation."""
