"""What is predicted, and the experiments: one Python file per task, one YAML file per experiment."""
