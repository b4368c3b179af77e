"""`launcher doctor`: whether this machine, its folders and the model are ready for a start."""
