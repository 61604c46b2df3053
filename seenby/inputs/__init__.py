"""What a person gives: networks and pictures."""
