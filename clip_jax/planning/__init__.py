"""Plans: what a train step costs on devices that are not attached."""
