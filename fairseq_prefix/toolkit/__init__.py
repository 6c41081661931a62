"""What fairseq's commands need: tasks, the criterion, and every change of fairseq's behaviour."""
