"""What a runtime takes time for: the ops of a network, and each of them alone at any widths."""
