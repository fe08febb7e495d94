"""Numbers computed from predictions and attention; knows neither models nor stores."""
