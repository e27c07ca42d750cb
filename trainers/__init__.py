"""How a network gets a score: data sets, tasks, training and evaluation."""
