"""What did the network look at? Grad-CAM and its relatives for any vision network."""
