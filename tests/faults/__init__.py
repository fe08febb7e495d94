"""The list of faults that the data plane must survive, one test per row; `test_row_NN_…` names the row."""
