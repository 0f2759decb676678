"""`paretune improve`: rounds of sample, label, align, with a held-out source and signs of reward hacking after each."""
